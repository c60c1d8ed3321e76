"""How the IoUs of evaluations are spread: a chart of all samples, and one for each task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np

from univg_fast.report.plots import COLOURS, STYLE, data_uri, empty_chart

BINS = 20
MAX_TASKS = 12  # with a chart of their own: the largest


def histograms(evaluations: Mapping[str, Sequence[dict[str, Any]]], names: Mapping[str, str]) -> list[dict[str, str]]:
    """Title, note and SVG of each chart; several evaluations are drawn over one another, in the order of COLOURS.

    `names`: task -> its title, in the order of charts.
    """
    given = {name: rows for name, rows in evaluations.items() if rows}
    sizes = Counter(str(row["task"]) for rows in given.values() for row in rows)
    largest = {task for task, _ in sizes.most_common(MAX_TASKS)} if len(sizes) > 1 else set()
    tasks = [task for task in names if task in largest]
    colours = dict(zip(evaluations, COLOURS, strict=False))
    out = []
    for task in [None, *tasks] if given else []:
        chosen = {n: [r["iou"] for r in rows if task in (None, str(r["task"]))] for n, rows in given.items()}
        chosen = {n: ious for n, ious in chosen.items() if ious}
        title = "All samples" if task is None else names[task]
        zero = [f"{name} {sum(x == 0 for x in ious) / len(ious):.0%}".strip() for name, ious in chosen.items()]
        uri = histogram(chosen, [colours[name] for name in chosen])
        out.append({"title": title, "unit": "% of samples", "note": f"IoU 0: {', '.join(zero)}.", "uri": uri})
    return out


def histogram(evaluations: Mapping[str, Sequence[float]], colours: Sequence[str]) -> str:
    """The shares of samples in BINS equal bins from 0 to 1; a dotted line at 0.5."""
    alone = len(evaluations) == 1
    with matplotlib.rc_context(STYLE):
        figure, axes = empty_chart("% of samples", "IoU")
        for ious, colour in zip(evaluations.values(), colours, strict=True):
            shares, edges = np.histogram(ious, bins=BINS, range=(0, 1), weights=np.full(len(ious), 100 / len(ious)))
            axes.stairs(shares, edges, fill=alone, color=colour, lw=1.6)
        axes.axvline(0.5, color="#4b5766", lw=1, ls=":")
        axes.set_xlim(-0.01, 1.01)
        return data_uri(figure)
