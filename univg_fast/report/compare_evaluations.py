"""Several evaluations on one page: figures, paired differences, tasks, histograms, settings that differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from univg_fast.evaluate.metrics import paired_difference
from univg_fast.evaluate.results import figure_lines, lines_of, task_names
from univg_fast.report import page, plots
from univg_fast.report.compare import differences, names_of
from univg_fast.report.evaluation import (
    Evaluation,
    about,
    best_published,
    load_evaluation,
    published_lines,
    slice_lines,
)
from univg_fast.report.histograms import histograms
from univg_fast.report.html import flatten

Lines = list[tuple[str, dict[str, Mapping[str, Any]]]]  # (label, of each evaluation that has it: figures)
SETTINGS = ("benchmark", "protocol", "parser", "model", "max_samples", "generation", "iou", "files", "versions")


def write_evaluations(folders: Sequence[str | Path], out: str | Path) -> Path:
    """Write one page that compares evaluations, the first being what the others are measured by; returns its path.

    ValueError for a folder given twice, too many of them, and a results.json that is none.
    """
    given = [load_evaluation(path) for path in folders]
    names = names_of([evaluation.path.resolve() for evaluation in given])
    return page.write(Path(out), render(dict(zip(names, given, strict=True))))


def render(given: Mapping[str, Evaluation]) -> str:
    """The page as text. `given`: name -> evaluation, in the order of their colours."""
    results = {name: evaluation.result for name, evaluation in given.items()}
    first = next(iter(results.values()))
    names = {task: label for result in results.values() for task, label in task_names(result).items()}
    same = all(entries_of(result) == entries_of(first) for result in results.values())
    beside = same and not any(r.get("oracle_image") for r in results.values())  # the published models saw all images
    settings = {name: dict(flatten({k: r[k] for k in SETTINGS if r.get(k)})) for name, r in results.items()}
    return page.render(
        "compare_evaluations.html.j2",
        name=" · ".join(given),
        given=given,
        colours_of=dict(zip(given, plots.COLOURS, strict=False)),
        about={name: about(result) for name, result in results.items()},
        same=same,
        odd={name: lines_of(result) for name, result in results.items()},
        sums=sums(given),
        tasks=side_by_side({name: figure_lines(r)[: len(r["tasks"])] for name, r in results.items()}),
        best=best_published(first) if beside else {},
        published=[row for row in published_lines(first)[1] if "model" in row] if beside else [],
        slices=slices(results),
        charts=histograms({name: evaluation.rows for name, evaluation in given.items()}, names),
        settings=differences(settings),
    )


def entries_of(result: Mapping[str, Any]) -> tuple[str, ...]:
    """What two evaluations must have in common, so that a sample of one is the same in the other."""
    return result["benchmark"], result["protocol"], result["files"]["data_digest"]


def sums(given: Mapping[str, Evaluation]) -> Lines:
    """The mean of tasks and all samples; "paired" of these: the difference from the first, or None."""
    first = next(iter(given.values()))
    cells: dict[str, Mapping[str, Any]] = {}
    for name, evaluation in given.items():
        same = entries_of(evaluation.result) == entries_of(first.result)
        both = same and evaluation is not first and evaluation.rows and first.rows
        paired = paired_difference(evaluation.rows, first.rows) if both else None
        cells[name] = {**evaluation.result, "paired": paired}
    means = {name: e.result["macro"] for name, e in given.items() if len(e.result["tasks"]) > 1 and e.result["macro"]}
    return ([("mean of tasks", means)] if means else []) + [("all samples", cells)]


def slices(results: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, Lines]]:
    """(title of a slice, its values with the figures of each evaluation)."""
    told = {name: dict(slice_lines(result)) for name, result in results.items()}
    titles = dict.fromkeys(title for of in told.values() for title in of)
    return [(t, side_by_side({name: of[t] for name, of in told.items() if t in of})) for t in titles]


def side_by_side(lines: Mapping[str, Sequence[tuple[str, Mapping[str, Any]]]]) -> Lines:
    """Lines of each evaluation, by label, in the order in which they come first."""
    labels = dict.fromkeys(label for of in lines.values() for label, _ in of)
    by_label = {name: dict(of) for name, of in lines.items()}
    return [(label, {name: of[label] for name, of in by_label.items() if label in of}) for label in labels]
