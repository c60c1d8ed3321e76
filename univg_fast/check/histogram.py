"""Figures of many records as a few bars."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BARS = 24
MOST = 12  # images of one record that get a bar of their own


@dataclass(frozen=True)
class Histogram:
    """Bars of equal width from `edges[0]` to `edges[-1]`; `figures`: name -> value, for the line below them."""

    title: str
    unit: str
    edges: tuple[float, ...]  # one more than bars
    counts: tuple[int, ...]
    figures: dict[str, float]

    @property
    def bars(self) -> list[tuple[str, int, float]]:
        """(range, count, per cent of the highest bar) of each bar."""
        top = max(self.counts, default=0) or 1
        pairs = zip(self.edges, self.edges[1:], strict=False)
        return [(self._range(a, b), n, 100 * n / top) for (a, b), n in zip(pairs, self.counts, strict=True)]

    def _range(self, low: float, high: float) -> str:
        whole = float(low).is_integer() and float(high).is_integer()
        if whole and high - low == 1:
            return f"{low:g}"
        return f"{low:,.0f} to {high - 1:,.0f}" if whole else f"{low:.2f} to {high:.2f}"


def tokens(title: str, values: array[int]) -> Histogram:
    """Of whole numbers from 0 on; zeros are records that were left out."""
    given = np.frombuffer(values, np.uint32) if values else np.zeros(0, np.uint32)
    given = given[given > 0]
    step = max(1, _round_up(int(given.max(initial=1)) / BARS))
    edges = np.arange(0, int(given.max(initial=1)) + step + 1, step)
    return _made(title, "tokens", given, edges)


def images(values: array[int]) -> Histogram:
    """Images of each record; the last bar holds all that have more."""
    given = np.frombuffer(values, np.uint32) if values else np.zeros(0, np.uint32)
    made = _made("Images per record", "images", given, np.arange(1, min(int(given.max(initial=1)), MOST) + 2))
    beyond = int((given >= made.edges[-1]).sum())
    return Histogram(made.title, made.unit, made.edges, (*made.counts[:-1], made.counts[-1] + beyond), made.figures)


def sides(values: array[float]) -> Histogram:
    """Box sizes: the root of the share of the image, so 0.1 is a tenth of its side."""
    given = np.frombuffer(values, np.float32) if values else np.zeros(0, np.float32)
    return _made("Box sizes", "side, as a part of the image's", given, np.linspace(0, 1, 21))


def _made(title: str, unit: str, given: np.ndarray, edges: Sequence[float] | np.ndarray) -> Histogram:
    counts, _ = np.histogram(given, edges)
    names = {"median": 50, "95 %": 95, "99 %": 99, "largest": 100}
    figures = {name: float(np.percentile(given, at)) for name, at in names.items()} if len(given) else {}
    if len(given):
        figures = {"mean": float(given.mean(dtype=np.float64))} | figures
    return Histogram(title, unit, tuple(float(e) for e in edges), tuple(int(n) for n in counts), figures)


def _round_up(value: float) -> int:
    """The next of 1, 2, 5, 10, 20, 50, …"""
    scale = 1
    while True:
        for step in (1, 2, 5):
            if step * scale >= value:
                return step * scale
        scale *= 10
