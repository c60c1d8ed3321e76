"""Curves of metrics.jsonl as small SVG charts: panels.py says what is drawn, `STYLE` how it looks."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from univg_fast.report.panels import PANELS, Panel

Rows = Sequence[dict[str, Any]]
MAX_POINTS = 400  # a curve is drawn with at most so many: longer ones become means of equal bins
COLOURS = ("#2f6db5", "#c2571a", "#6b4fa0", "#3f8a5b", "#b08a1e", "#7d8794", "#b0446f", "#2a8f9d")  # of curves, runs
PHASE_COLOURS = {
    "data": "#9aa5b1",
    "gen": "#2a9d8f",
    "score": "#8ab17d",
    "ref": "#e9c46a",
    "update": "#e08b5b",
    "optim": "#a8563c",
    "sync": "#5c4b51",
    "save": "#264653",
}
OTHER_COLOUR = "#d3d8de"  # of any other phase
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "univg-fast",  # the same run gives the same bytes
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.edgecolor": "#c3cad3",
    "axes.labelcolor": "#4b5766",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e8ebef",
    "grid.linewidth": 0.8,
    "xtick.color": "#4b5766",
    "ytick.color": "#4b5766",
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "axes.formatter.limits": (-3, 5),
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}


def charts(stage: str, rows: Rows) -> list[dict[str, str]]:
    """The charts of a stage that `rows` have figures for: title, note and the SVG as a data URI."""
    out = []
    for panel in PANELS.get(stage, PANELS["sft"]):
        curves = _curves(panel, rows)
        if curves:
            svg = line_chart(panel, curves)
            out.append({"title": panel.title, "unit": panel.unit, "note": panel.note, "uri": svg})
    if phases(rows):
        note = "Where a step's time goes; the mean share of each phase is in the legend."
        out.append({"title": "Time by phase", "unit": "seconds per step", "note": note, "uri": time_chart(rows)})
    return out


def overlaid(stage: str, runs: Mapping[str, Rows], colours: Mapping[str, str]) -> list[dict[str, str]]:
    """The same charts with a curve for each run in its colour: one chart for each curve of a panel."""
    out = []
    for panel in PANELS.get(stage, PANELS["sft"]):
        found: dict[str, list[tuple[str, np.ndarray, np.ndarray]]] = {}
        for name, rows in runs.items():
            for label, steps, values in _curves(panel, rows):
                found.setdefault(label, []).append((name, steps, values))
        for label, curves in found.items():
            title = f"{panel.title}: {label}" if len(found) > 1 else panel.title
            uri = line_chart(panel, curves, [colours[name] for name, *_ in curves], legend=False)
            out.append({"title": title, "unit": panel.unit, "note": panel.note, "uri": uri})
    return out


def line_chart(
    panel: Panel,
    curves: Sequence[tuple[str, np.ndarray, np.ndarray]],
    colours: Sequence[str] = COLOURS,
    legend: bool = True,
) -> str:
    """Raw values thin and pale, their running mean bold on top. Curves are (name, steps [n], values [n])."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(panel.unit)
        for (name, steps, values), colour in zip(curves, colours, strict=False):
            steps, values = thin_out(steps, values)
            few = len(values) < 12
            axes.plot(
                steps,
                values,
                color=colour,
                lw=0.8,
                alpha=1.0 if few else 0.3,
                marker="." if few else "",
                ms=4,
                clip_on=False,
            )
            axes.plot(steps, smooth(values), color=colour, lw=1.8, alpha=0 if few else 1, label=name, clip_on=False)
        if panel.log and any((values > 0).any() for _, _, values in curves):
            axes.set_yscale("log")
        elif panel.floor is not None:
            least, most = (float(f([f(values) for _, _, values in curves])) for f in (np.min, np.max))
            if least >= panel.floor:
                axes.set_ylim(panel.floor, max(1.08 * most, panel.ceiling or 0) or 1.0)
        if legend and len(curves) > 1:
            for handle in axes.legend(loc="best", handlelength=1.2).legend_handles:
                handle.set_alpha(1)
        return data_uri(figure)


def time_chart(rows: Rows) -> str:
    """Seconds of a step, stacked by phase."""
    steps = np.array([row["step"] for row in rows], dtype=float)
    timed = phases(rows)
    total = sum(float(seconds.sum()) for seconds in timed.values()) or 1.0
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure("seconds per step")
        labels = [f"{name} {100 * float(seconds.sum()) / total:.0f}%" for name, seconds in timed.items()]
        colours = [PHASE_COLOURS.get(name, OTHER_COLOUR) for name in timed]
        thin = [thin_out(steps, smooth(seconds)) for seconds in timed.values()]
        axes.stackplot(thin[0][0], [v for _, v in thin], labels=labels, colors=colours, lw=0)
        axes.set_ylim(0, axes.get_ylim()[1] * 1.45)
        axes.legend(loc="upper left", ncols=3, handlelength=0.9, columnspacing=1.0)
        return data_uri(figure)


def phases(rows: Rows) -> dict[str, np.ndarray]:
    """Seconds [n] of each timed phase in the order logged, "other" being what is in none of them."""
    keys = dict.fromkeys(key for row in rows for key in row if key.startswith("timing_s/"))
    seconds = {key.removeprefix("timing_s/"): np.nan_to_num([_number(row.get(key)) for row in rows]) for key in keys}
    step = seconds.pop("step", None)
    if seconds and step is not None and "other" not in seconds:
        seconds["other"] = np.maximum(step - sum(seconds.values()), 0.0)
    return seconds


def smooth(values: np.ndarray) -> np.ndarray:
    """Centred running mean over a tenth of the curve (at least 5 points), cut off at the curve's ends."""
    half = max(5, len(values) // 10) // 2
    known = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(known)])
    index = np.arange(len(values))
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (sums[high] - sums[low]) / (counts[high] - counts[low])


def thin_out(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most MAX_POINTS points: means over equal bins of a longer curve."""
    if len(values) <= MAX_POINTS:
        return steps, values
    bins = np.array_split(np.arange(len(values)), MAX_POINTS)
    return np.array([steps[b].mean() for b in bins]), np.array([values[b].mean() for b in bins])


def _curves(panel: Panel, rows: Rows) -> list[tuple[str, np.ndarray, np.ndarray]]:
    found = []
    for key, name in panel.curves:
        for exact, label in _expand(key, name, rows):
            points = [(row["step"], _number(row[exact])) for row in rows if exact in row]
            points = [(step, value) for step, value in points if math.isfinite(value)]
            if points:
                steps, values = np.array(points, dtype=float).T
                found.append((label, steps, values))
    return found


def _expand(key: str, name: str, rows: Rows) -> list[tuple[str, str]]:
    if "*" not in key:
        return [(key, name)]
    head, tail = key.split("*")
    keys = dict.fromkeys(k for row in rows for k in row if k.startswith(head) and k.endswith(tail))
    return [(k, k[len(head) : len(k) - len(tail)]) for k in keys]


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _figure(unit: str) -> tuple[Figure, Any]:
    figure, axes = empty_chart(unit, "step")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    axes.margins(x=0.02)
    return figure, axes


def empty_chart(unit: str, across: str) -> tuple[Figure, Any]:
    """A figure and its axes, `unit` being that of the ordinate."""
    figure = Figure(figsize=(4.3, 2.35), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    axes.set_xlabel(across)
    axes.set_ylabel(unit)
    return figure, axes


def data_uri(figure: Figure) -> str:
    """A figure as SVG, the same bytes each time."""
    out = io.BytesIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(out.getvalue()).decode("ascii")
