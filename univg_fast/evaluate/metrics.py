"""Scores of a held-out set: Acc@t (share of samples with IoU >= t) and mean IoU, per task and over all.

A sample never leaves the denominator: no box, a NaN, an inverted box all score IoU 0 and are counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from rich.table import Table

from univg_fast.evaluate.overlap import Numbers, box_fault, iou
from univg_fast.evaluate.slices import images_named, sets, slices

THRESHOLDS = (0.1, 0.3, 0.5, 0.7, 0.9)
FAULTS = ("no_box", "bad_box", "inverted_box", "bad_iou", "unmatched")  # why a sample, or a target, scores 0
METRICS = ("acc@0.3", "acc@0.5", "acc@0.7", "miou")  # of tables
TITLES = {"acc@0.3": "Acc@0.3", "acc@0.5": "Acc@0.5", "acc@0.7": "Acc@0.7", "miou": "mIoU"}
BOX_RANGE = (0, 1000)  # norm1000, see univg_fast/structs.py

Row = Mapping[str, Any]


def ious(boxes: Sequence[Numbers | None], gts: Sequence[Numbers]) -> list[float]:
    """Plain IoU of pairs; 0 where the predicted box cannot be scored. A bad ground truth is a ValueError."""
    for i, gt in enumerate(gts):
        if fault := box_fault(gt):
            raise ValueError(f"ious: ground truth {i} is {gt} ({fault}); expected x1 < x2 and y1 < y2, finite")
    return [iou(box, gt) for box, gt in zip(boxes, gts, strict=True)]


def bootstrap_interval(
    *parts: Sequence[float] | np.ndarray,
    samples: Sequence[Sequence[str]] | None = None,
    seed: int = 0,
    num_resamples: int = 1000,
) -> tuple[float, float]:
    """95% percentile bootstrap interval of the mean over `parts` of their means; the same for the same seed.

    Each part [n] is resampled by itself: of one part, it is the interval of its mean. `samples`: of each part the
    sample that each value belongs to; values of one sample are drawn together.
    """
    arrays = [np.asarray(part, dtype=np.float64) for part in parts]
    if not arrays or any(array.size == 0 for array in arrays):
        raise ValueError("bootstrap_interval: got no values; an interval needs at least one sample")
    rng = np.random.default_rng(seed)
    means = np.zeros(num_resamples)
    for array, owners in zip(arrays, samples or map(range, map(len, arrays)), strict=True):
        numbers: dict[Any, int] = {}
        owner = [numbers.setdefault(name, len(numbers)) for name in owners]
        sums, sizes, n = np.bincount(owner, weights=array), np.bincount(owner), len(numbers)
        draws = (rng.integers(n, size=n) for _ in range(num_resamples))
        means += [sums[drawn].sum() / sizes[drawn].sum() for drawn in draws]
    low, high = np.percentile(means / len(arrays), [2.5, 97.5])
    return float(low), float(high)


def summarize(
    rows: Sequence[Row], *, seed: int = 0, num_resamples: int = 1000, tasks: Sequence[str] = ()
) -> dict[str, Any]:
    """The figures of eval/NAME.json from the rows of eval/NAME.jsonl.

    Args:
        rows: a mapping per sample: `uid`, `task`, `box` (xyxy in thousandths, or None), and `iou` (used where given) or
            `gt`; `fault` where the scorer has judged the box already; `format` (0 or 1) is averaged
            over the rows that have one; `target_image`, `image` and `images`: see `slices.py`.
        seed, num_resamples: of the bootstrap intervals.
        tasks: what `macro` is a mean over; empty: all of the rows.

    Returns:
        `n`; micro `acc@0.1` to `acc@0.9`, `miou` over all samples; `acc@0.5_ci95` and `miou_ci95` [low, high];
        `macro`, the unweighted mean over tasks; with `tasks`, `outside_the_mean`: rows of none of them; `tasks`, the
        same figures per task; `counts` of what scored 0 (`no_box`, `bad_box`, `inverted_box`, `bad_iou`, `unmatched`;
        of each task and slice, too) and of what was odd but scored (`out_of_range_box`, `duplicate_uid`); `images`,
        `sets` and `slices` of slices.py, where there is any.

    Raises: ValueError for no rows, and for a ground truth that cannot be scored where there is no `iou`.
    """
    if not rows:
        raise ValueError("summarize: got no rows; expected one row for each held-out sample")
    scores, faults, odd = _sample_ious(rows)
    names, owners = (np.array(one) for one in zip(*((_task(row), _owner(row)) for row in rows), strict=True))
    at = {task: np.flatnonzero(names == task) for task in sorted(map(str, set(names)))}
    averaged = [at[task] for task in (tasks or at) if task in at]

    def intervals(parts: Sequence[np.ndarray]) -> dict[str, Any]:
        return _intervals([scores[part] for part in parts], [owners[part] for part in parts], seed, num_resamples)

    def part_of(where: np.ndarray) -> dict[str, Any]:
        return figures(scores[where]) | {"counts": _unscored(faults[where])}

    summary = figures(scores) | intervals([np.arange(len(rows))])
    summary["macro"] = _macro([scores[part] for part in averaged]) | intervals(averaged) if averaged else {}
    if tasks:
        summary["outside_the_mean"] = len(rows) - sum(map(len, averaged))
    if formats := [row["format"] for row in rows if row.get("format") is not None]:
        summary["format"] = float(np.mean(formats))
    counts = _unscored(faults) | odd
    each = {task: part_of(where) | intervals([where]) for task, where in at.items()}
    parts = {name: {k: part_of(where) for k, where in of.items()} for name, of in slices(rows).items()}
    found = {"images": images_named(rows, scores), "sets": sets(rows, scores), "slices": parts}
    if all("center" in row for row in rows):  # lmms-eval's tasks
        summary["center_acc"] = math.fsum(row["center"] for row in rows) / len(rows)
    return summary | {"counts": counts, "tasks": each} | {name: part for name, part in found.items() if part}


def _task(row: Row) -> str:
    return str(row.get("task", "unknown"))


def _owner(row: Row) -> str:
    """The sample of a row: several targets of one share its answer."""
    return str(row.get("sample", row["uid"]))


def _unscored(faults: np.ndarray) -> dict[str, int]:
    return {kind: int((faults == kind).sum()) for kind in FAULTS}


def figures(scores: np.ndarray) -> dict[str, Any]:
    """The share of `scores` [n] at each threshold or above, and their mean, whatever their order."""
    accuracy = {f"acc@{t}": int((scores >= t).sum()) / len(scores) for t in THRESHOLDS}
    return {"n": len(scores), **accuracy, "miou": math.fsum(scores) / len(scores)}


def _macro(parts: Sequence[np.ndarray]) -> dict[str, float]:
    each = [figures(part) for part in parts]
    return {m: math.fsum(one[m] for one in each) / len(each) for m in each[0] if m != "n"} | {"tasks": len(each)}


def _intervals(
    parts: Sequence[np.ndarray], owners: Sequence[np.ndarray], seed: int, num_resamples: int
) -> dict[str, Any]:
    """95% intervals of the mean over `parts` of their Acc@0.5 and mean IoU, each part resampled by itself."""
    given: dict[str, Any] = {"samples": owners, "num_resamples": num_resamples, "seed": seed}
    return {
        "acc@0.5_ci95": list(bootstrap_interval(*[part >= 0.5 for part in parts], **given)),
        "miou_ci95": list(bootstrap_interval(*parts, **given)),
    }


def paired_difference(
    rows: Sequence[Row], baseline: Sequence[Row], *, threshold: float = 0.5, seed: int = 0
) -> dict[str, Any]:
    """Acc@threshold of `rows` minus that of `baseline` on the uids both hold, with a paired 95% interval."""
    ours, theirs = (dict(zip((r["uid"] for r in s), _sample_ious(s)[0], strict=True)) for s in (rows, baseline))
    shared = [uid for uid in ours if uid in theirs]
    if not shared:
        raise ValueError(f"paired_difference: no uid is in both sets ({len(ours)} and {len(theirs)} samples)")
    change = np.array([float(ours[u] >= threshold) - float(theirs[u] >= threshold) for u in shared])
    owner = {row["uid"]: _owner(row) for row in rows}
    return {
        "n": len(shared),
        "difference": float(change.mean()),
        "ci95": bootstrap_interval(change, samples=[[owner[u] for u in shared]], seed=seed),
    }


def results_table(evals: Mapping[str, Mapping[str, Any]], *, title: str = "Held-out results, %") -> Table:
    """Console table of 80 columns: a line per task, their mean, all samples; a cell holds every stage.

    Args: evals: stage name ("before", "sft", "grpo", in this order) to the summary of its eval/NAME.json.
    """
    short = [{"before": "base"}.get(name, name) for name in evals]  # four letters: twelve figures must fit 80 columns
    widths = [max(4, len(name)) for name in short]
    stages = " ".join(f"{name:>{w}}" for name, w in zip(short, widths, strict=True))
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("task", no_wrap=True)
    for metric in METRICS:
        table.add_column(f"{TITLES[metric]}\n{stages}", justify="right", no_wrap=True, min_width=len(stages))
    for label, pick in table_lines(evals):
        cells = [
            " ".join(f"{percent(pick(e).get(m)):>{w}}" for e, w in zip(evals.values(), widths, strict=True))
            for m in METRICS
        ]
        table.add_row(label, *cells, style="bold" if label == "all samples" else "")
    return table


def table_lines(
    evals: Mapping[str, Mapping[str, Any]],
) -> list[tuple[str, Callable[[Mapping[str, Any]], Mapping[str, Any]]]]:
    """The lines of a results table in order: (label, how to take that line's figures out of a summary)."""
    tasks = sorted({task for summary in evals.values() for task in summary.get("tasks", {})})
    lines = [(task, partial(_task_figures, task)) for task in tasks]
    macro = [("mean of tasks", lambda summary: summary.get("macro", {}))] if len(tasks) > 1 else []
    return [*lines, *macro, ("all samples", lambda summary: summary)]


def percent(value: float | None) -> str:
    """0.532 -> "53.2"; four characters at most (1.0 -> "100"); a figure that is not there -> "-"."""
    if value is None:
        return "-"
    text = f"{100 * value:.1f}"
    return text if len(text) <= 4 else text[:-2]


def _task_figures(task: str, summary: Mapping[str, Any]) -> Mapping[str, Any]:
    return summary.get("tasks", {}).get(task, {})


def _sample_ious(rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """IoU of each row, [n] float64 in [0, 1]; why it has none, [n] of FAULTS or None; and counts of what was odd."""
    boxes = [row.get("box") for row in rows]
    faults = [row["fault"] if "fault" in row else box_fault(box) for row, box in zip(rows, boxes, strict=True)]
    scores = np.zeros(len(rows))
    unscored = [i for i, row in enumerate(rows) if faults[i] is None and "iou" not in row]
    scores[unscored] = ious([boxes[i] for i in unscored], [rows[i]["gt"] for i in unscored])
    for i, row in enumerate(rows):
        if faults[i] is None and "iou" in row:
            value = row["iou"]
            good = isinstance(value, int | float) and 0.0 <= value <= 1.0  # a NaN fails the comparison
            scores[i], faults[i] = (value, None) if good else (0.0, "bad_iou")
    low, high = BOX_RANGE
    usable = [box for box, fault in zip(boxes, faults, strict=True) if box is not None and fault is None]
    counts = {"out_of_range_box": sum(min(box) < low or max(box) > high for box in usable)}
    counts["duplicate_uid"] = len(rows) - len({row["uid"] for row in rows})
    return scores, np.array(faults, dtype=object), counts
