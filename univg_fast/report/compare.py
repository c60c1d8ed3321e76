"""Several runs on one page: final figures, paired differences, speed, curves, and what was different about them."""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from univg_fast.evaluate.metrics import paired_difference, table_lines
from univg_fast.report import page, plots
from univg_fast.report.html import CHAPTERS, STAGES, duration, flatten, mishaps
from univg_fast.report.run import Run, load_run, place

# metric, its name, how it is written; medians over a stage's steps
SPEEDS = (
    ("timing_s/step", "seconds per step", "{:.3g}"),
    ("tokens_per_second", "tokens/s", "{:,.0f}"),
    ("dense_tokens_per_second", "dense tokens/s", "{:,.0f}"),
    ("prompts_per_second", "prompts/s", "{:.3g}"),
    ("tflops", "TFLOP/s of a device", "{:.4g}"),
    ("mfu", "MFU", "{:.1%}"),
    ("data_wait", "waiting for data", "{:.1%}"),
    ("pack/fill", "row fill", "{:.1%}"),
    ("memory/reserved_gb", "GPU memory, GB", "{:.3g}"),
    ("memory/resident_gb", "host memory, GB", "{:.3g}"),
)
IGNORED = ("run.dir",)  # two runs of one folder would be one run


def write_comparison(run_dirs: Sequence[str | Path], out: str | Path) -> Path:
    """Write one page that compares the runs, the first being what the others are measured by; returns its path.

    ValueError for a folder that is not there, for one given twice, and for more runs than there are colours.
    """
    runs = [load_run(path) for path in run_dirs]
    names = names_of([run.path.resolve() for run in runs])
    return page.write(Path(out), render(dict(zip(names, runs, strict=True))))


def render(runs: Mapping[str, Run]) -> str:
    """The page as text. `runs`: name -> run, in the order of their colours."""
    stages = list(dict.fromkeys(stage for run in runs.values() for stage in run.metrics))
    colours = dict(zip(runs, plots.COLOURS, strict=False))
    chapters = []
    for stage in stages:
        rows = {name: run.metrics[stage] for name, run in runs.items() if stage in run.metrics}
        steps = {name: (duration(rows[name]), mishaps(stage, rows[name], runs[name].events)) for name in rows}
        charts = plots.overlaid(stage, rows, colours)
        chapters.append((CHAPTERS.get(stage, stage), steps, speeds(rows), phase_bars(rows), charts))
    return page.render(
        "compare.html.j2",
        name=" · ".join(runs),
        runs=runs,
        colours_of=colours,
        stages=STAGES,
        finals=finals(runs),
        tasks=by_task(runs),
        chapters=chapters,
        config=differences({name: _settings(run) for name, run in runs.items()}),
        env=differences({name: dict(flatten(run.env)) for name, run in runs.items()}),
    )


def finals(runs: Mapping[str, Run]) -> list[tuple[str, dict[str, dict[str, Any]]]]:
    """(evaluation, of each run that has it: summary, and "paired": its difference from the first run's, or None)."""
    first = next(iter(runs.values()))
    found = []
    for name in sorted({name for run in runs.values() for name in run.evals}, key=place):
        cells: dict[str, dict[str, Any]] = {}
        for title, run in runs.items():
            if name in run.evals:
                both = run is not first and shared(run, first, name)
                paired = paired_difference(run.answers[name], first.answers[name]) if both else None
                cells[title] = {**run.evals[name], "paired": paired}
        found.append((name, cells))
    return found


def shared(run: Run, other: Run, name: str) -> bool:
    """Whether the two runs answered any of the same samples in the evaluation `name`."""
    ours, theirs = ({row["uid"] for row in each.answers.get(name, [])} for each in (run, other))
    return not ours.isdisjoint(theirs)


def by_task(runs: Mapping[str, Run]) -> tuple[str, list[tuple[str, dict[str, Any]]]] | None:
    """The last evaluation that all runs have, and of each of its tasks every run's figures; None if there is none."""
    common = [name for name in next(iter(runs.values())).evals if all(name in run.evals for run in runs.values())]
    if not common:
        return None
    summaries = {title: run.evals[common[-1]] for title, run in runs.items()}
    lines = [(label, {title: pick(s) for title, s in summaries.items()}) for label, pick in table_lines(summaries)]
    return common[-1], lines


def speeds(rows: Mapping[str, Sequence[dict[str, Any]]]) -> list[tuple[str, dict[str, tuple[str, str]]]]:
    """(what, of each run: the median over its steps, and how many times the first run's that is)."""
    lines = []
    for key, title, form in SPEEDS:
        medians = {n: statistics.median(r[key] for r in of if key in r) for n, of in rows.items() if _has(of, key)}
        base = medians.get(next(iter(rows)))
        times = {n: f"{value / base:.2f}×" if base and n != next(iter(rows)) else "" for n, value in medians.items()}
        if medians:
            lines.append((title, {n: (form.format(value), times[n]) for n, value in medians.items()}))
    return lines


def phase_bars(rows: Mapping[str, plots.Rows]) -> dict[str, Any]:
    """Mean seconds of a step by phase: bars of equal scale, widths in percent of the longest run's step."""
    means = {n: {p: float(s.mean()) for p, s in plots.phases(of).items()} for n, of in rows.items()}
    longest = max((sum(of.values()) for of in means.values()), default=0.0) or 1.0
    phases = list(dict.fromkeys(phase for of in means.values() for phase in of if of[phase] >= 0.002 * longest))
    colours = {phase: plots.PHASE_COLOURS.get(phase, plots.OTHER_COLOUR) for phase in phases}
    bars = {
        n: (sum(of.values()), [(p, of[p], 100 * of[p] / longest, colours[p]) for p in phases if of.get(p)])
        for n, of in means.items()
        if of
    }
    return {"colours": colours, "bars": bars}


def differences(of_runs: Mapping[str, Mapping[str, str]]) -> list[tuple[str, dict[str, str]]]:
    """(key, value of each run) of the keys that are not the same everywhere; "–" where a run has no such key."""
    keys = dict.fromkeys(key for values in of_runs.values() for key in values if key not in IGNORED)
    lines = [(key, {name: values.get(key, "–") for name, values in of_runs.items()}) for key in keys]
    return [(key, values) for key, values in lines if len(set(values.values())) > 1]


def _settings(run: Run) -> dict[str, str]:
    try:
        read = yaml.safe_load(run.config or "")
    except yaml.YAMLError:
        return {"config.yaml": "cannot be read"}
    return dict(flatten(read)) if isinstance(read, dict) else {}


def _has(rows: Sequence[Mapping[str, Any]], key: str) -> bool:
    return any(key in row for row in rows)


def names_of(paths: Sequence[Path]) -> list[str]:
    """As much of the end of each path as tells it from the others. ValueError for the same path twice, and for more
    paths than there are colours."""
    if len(paths) > len(plots.COLOURS):
        raise ValueError(f"report: expected at most {len(plots.COLOURS)} folders on one page, got {len(paths)}")
    if len(set(paths)) < len(paths):
        raise ValueError(f"report: expected different folders, got the same folder twice: {', '.join(map(str, paths))}")
    for parts in range(1, 100):
        names = [os.sep.join(path.parts[-parts:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    raise AssertionError("different paths have different parts")
