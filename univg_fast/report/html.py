"""report.html: one page that says how a run went. Self-contained: no network, no script, images inside."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from univg_fast.evaluate.metrics import METRICS, TITLES, percent, table_lines
from univg_fast.report import cards, plots
from univg_fast.report.overlays import PREDICTION_COLOUR, TRUTH_COLOUR, Album, to_pixels
from univg_fast.report.run import Run, gain, load_run

STAGES = {"before": "before training", "sft": "after SFT", "grpo": "after GRPO"}
KINDS = {  # the counts of evaluate.metrics.summarize, in words
    "no_box": "answers without a readable box",
    "bad_box": "boxes that are not four finite numbers",
    "inverted_box": "boxes without area",
    "bad_iou": "IoUs that are no number from 0 to 1",
    "out_of_range_box": "boxes beyond 0-1000",
    "duplicate_uid": "repeated samples",
}
# An untrained byte-level model says these too: HTML forbids the first, UTF-8 cannot hold the second.
UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]|[\ud800-\udfff]")
CHAPTERS = {"sft": "Stage 1: chain-of-thought SFT", "grpo": "Stage 2: GRPO"}


def write_report(run_dir: str | Path) -> Path:
    """Write RUN_DIR/report.html from what the folder holds, return its path; ValueError if it is no folder.

    Files that are missing are named on the page. A page that is there already is replaced in one piece.
    """
    run = load_run(run_dir)
    page = run.path / "report.html"
    half = page.with_suffix(".html.tmp")
    half.write_text(render(run), encoding="utf-8")
    os.replace(half, page)
    return page


def render(run: Run) -> str:
    """The page as text."""
    album = Album(run.path)
    rollouts = cards.rollout_cards(run, album)
    examples = cards.eval_cards(run, album)
    environment = Environment(
        loader=PackageLoader("univg_fast", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "points": lambda x: f"{100 * x:+.1f}",
        "capitalize_first": lambda s: s[:1].upper() + s[1:],
    }
    page = environment.get_template("report.html.j2").render(
        run=run,
        name=run.path.resolve().name,
        stages=STAGES,
        headline=headline(run),
        gain=gain(run),
        metrics=METRICS,
        titles=TITLES,
        kinds=KINDS,
        lines=[(label, [pick(e) for e in run.evals.values()]) for label, pick in table_lines(run.evals)],
        chapters=[(CHAPTERS.get(s, s), duration(rows), plots.charts(s, rows)) for s, rows in run.metrics.items()],
        rollouts=rollouts,
        examples=examples,
        album=[p for p in album.pictures.values() if p.uri],
        album_full=album.full,
        facts=facts(run),
        data_report=json.dumps(_short(run.data_report), indent=1, ensure_ascii=False),
        to_pixels=to_pixels,
        colours={"truth": TRUTH_COLOUR, "prediction": PREDICTION_COLOUR},
    )
    return UNPRINTABLE.sub("\ufffd", page)


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
    text = f"{len(rows)} step{'s' * (len(rows) != 1)}"
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
    return found + _flat(run.env)


def _flat(mapping: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    out: list[tuple[str, str]] = []
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            out += _flat(value, f"{prefix}{key}.")
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
