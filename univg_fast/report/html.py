"""report.html: one page that says how a run went. Self-contained: no network, no script, images inside."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from univg_fast.evaluate.metrics import METRICS, TITLES, table_lines
from univg_fast.report import cards, page, plots
from univg_fast.report.overlays import Album
from univg_fast.report.run import Run, gain, load_run

STAGES = {"before": "before training", "sft": "after SFT", "grpo": "after GRPO"}
KINDS = {  # the counts of evaluate.metrics.summarize, in words
    "no_box": "answers without a readable box",
    "bad_box": "boxes that are not four finite numbers",
    "inverted_box": "boxes without area",
    "bad_iou": "IoUs that are no number from 0 to 1",
    "unmatched": "targets, of several, that no box was for",
    "out_of_range_box": "boxes beyond 0-1000",
    "duplicate_uid": "repeated samples",
}
CHAPTERS = {"sft": "Stage 1: chain-of-thought SFT", "grpo": "Stage 2: GRPO"}


def write_report(run_dir: str | Path) -> Path:
    """Write RUN_DIR/report.html from what the folder holds, return its path; ValueError if it is no folder.

    Files that are missing are named on the page. A page that is there already is replaced in one piece.
    """
    run = load_run(run_dir)
    return page.write(run.path / "report.html", render(run))


def render(run: Run) -> str:
    """The page as text."""
    album = Album(run.path)
    rollouts = cards.rollout_cards(run, album)
    examples = cards.eval_cards(run, album)
    return page.render(
        "report.html.j2",
        run=run,
        name=run.path.resolve().name,
        stages=STAGES,
        headline=headline(run),
        gain=gain(run),
        metrics=METRICS,
        titles=TITLES,
        kinds=KINDS,
        lines=[(label, [pick(e) for e in run.evals.values()]) for label, pick in table_lines(run.evals)],
        chapters=[
            (CHAPTERS.get(s, s), duration(rows), mishaps(s, rows, run.events), plots.charts(s, rows))
            for s, rows in run.metrics.items()
        ],
        rollouts=rollouts,
        examples=examples,
        album=[p for p in album.pictures.values() if p.uri],
        album_full=album.full,
        facts=facts(run),
        data_report=json.dumps(_short(run.data_report), indent=1, ensure_ascii=False),
    )


def write_sheet(run_dir: Path, stage: str, step: int, rows: Sequence[dict[str, Any]]) -> Path:
    """Write RUN_DIR/sheets/STAGE_STEP.html of some of a step's lines of rollouts/; returns its path."""
    album, given = Album(run_dir), [row for row in rows if row["completions"]]
    chosen = sorted(given, key=cards.spread_of_rewards, reverse=True)[: cards.ROLLOUT_CARDS]
    shown = [cards.rollout_card(stage, row, album) for row in chosen]
    text = page.render(
        "sheet.html.j2",
        name=f"{run_dir.resolve().name}: {stage} step {step}",
        cards=shown,
        of=len(rows),
        album=[p for p in album.pictures.values() if p.uri],
    )
    return page.write(run_dir / "sheets" / f"{stage}_{step:06d}.html", text)


def mishaps(stage: str, rows: list[dict[str, Any]], events: Sequence[dict[str, Any]]) -> list[str]:
    """What did not go smoothly in a stage: skipped steps, failed saves, interruptions."""
    skipped = [row["step"] for row in rows if row.get("skipped")]
    failed = int(max((row.get("saves_failed", 0) for row in rows), default=0))
    resumed = [e["step"] for e in events if e.get("event") == "resumed" and e.get("stage") == stage]
    found = []
    if skipped:
        found.append(f"{_times(len(skipped), 'step')} skipped for gradients that were not finite: {_listed(skipped)}")
    if failed:
        found.append(f"{_times(failed, 'checkpoint')} could not be written")
    if resumed:
        found.append(f"resumed {_times(len(resumed), 'time')}, after step {_listed(resumed)}")
    return found


def headline(run: Run) -> list[dict[str, Any]]:
    """The large figures: Acc@0.5 of each evaluation with its interval."""
    return [
        {
            "name": name,
            "title": STAGES.get(name, name),
            "value": summary.get("acc@0.5"),
            "ci": summary.get("acc@0.5_ci95"),
            "miou": summary.get("miou"),
            "n": summary.get("n"),
        }
        for name, summary in run.evals.items()
    ]


def duration(rows: list[dict[str, Any]]) -> str:
    """For example "400 steps, 6 min 12 s": the steps' own time, so a pause before a resume does not count."""
    text = _times(len(rows), "step")
    seconds = sum(row.get("timing_s/step", 0.0) for row in rows)
    return f"{text}, {_minutes(seconds)}" if seconds else text


def facts(run: Run) -> list[tuple[str, str]]:
    """Name and value of what is known about the run and its machine."""
    times = [row["time"] for rows in run.metrics.values() for row in rows if "time" in row]
    found = []
    if times:
        start, end = (f"{datetime.fromtimestamp(t, UTC):%Y-%m-%d %H:%M} UTC" for t in (min(times), max(times)))
        found += [("first step logged", start), ("last step logged", end)]
    for name, summary in run.evals.items():
        if "seconds" in summary:
            found.append((f"evaluation {STAGES.get(name, name)}", _minutes(summary["seconds"])))
    return found + flatten(run.env)


def flatten(mapping: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested mappings as one, with dotted keys; values as text."""
    out: list[tuple[str, str]] = []
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            out += flatten(value, f"{prefix}{key}.")
        else:
            out.append((f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)))
    return out


def _short(value: Any, most: int = 20) -> Any:
    """The same JSON with long lists cut: a thousand bad records belong in the file, not on the page."""
    if isinstance(value, dict):
        return {key: _short(item) for key, item in value.items()}
    if isinstance(value, list):
        more = [f"... and {len(value) - most} more"] if len(value) > most else []
        return [_short(item) for item in value[:most]] + more
    return value


def _minutes(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    hours, minutes = divmod(int(seconds) // 60, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {int(seconds) % 60} s"


def _times(number: int, word: str) -> str:
    return f"{number} {word}{'s' * (number != 1)}"


def _listed(numbers: list[int], most: int = 10) -> str:
    more = f" and {len(numbers) - most} more" if len(numbers) > most else ""
    return ", ".join(map(str, numbers[:most])) + more
