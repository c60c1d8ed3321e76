"""What the four numbers of a box mean, and conversion between the meanings.

    norm1      0 to 1 of the image's own width and height
    norm1000   0 to 1000 of them: the project's own, and the text of Qwen2-VL and Qwen3-VL
    pixel      pixels of the image as stored
    resized    pixels of the image as the model sees it (`smart_resize`): the text of Qwen2.5-VL

A conversion rounds to the nearest unit of its result, and widens what would lose its area by one unit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from univg_fast.rewards.units import Extent
from univg_fast.structs import Box

SYSTEMS = ("norm1", "norm1000", "pixel", "resized")
Size = tuple[int, int]  # width, height
MAX_ASPECT = 200  # the longer side over the shorter one; Qwen2-VL's resize refuses more
SLACK = {"norm1": 1e-3, "norm1000": 0.0, "pixel": 1.0, "resized": 1.0}  # how far a box may stand out of its image


def smart_resize(size: Size, factor: int = 28, min_pixels: int = 3136, max_pixels: int = 401408) -> Size:
    """The size at which Qwen-VL sees an image: sides multiples of `factor`, area within the bounds, ratio kept.

    Source: Qwen2-VL's image processor; tests/data/test_coordinates.py compares with that of transformers.
    ValueError beyond a ratio of 200.
    """
    width, height = size
    if max(size) > MAX_ASPECT * min(size):
        raise ValueError(f"smart_resize: expected sides of a ratio up to {MAX_ASPECT}, got {width}x{height}")
    near = round(width / factor) * factor, round(height / factor) * factor  # 0 for a side below half of the factor
    if near[0] * near[1] > max_pixels:
        scale = math.sqrt(width * height / max_pixels)
        return tuple(max(factor, math.floor(side / scale / factor) * factor) for side in size)  # type: ignore[return-value]
    if near[0] * near[1] < min_pixels:
        scale = math.sqrt(min_pixels / (width * height))
        return tuple(math.ceil(side * scale / factor) * factor for side in size)  # type: ignore[return-value]
    return near


def to_norm1000(box: Sequence[float], system: str, size: Size | None = None, resized: Size | None = None) -> Box:
    """A box of a file or a model as integers 0-1000 of its image.

    `size` and `resized` (width, height) are needed by the systems "pixel" and "resized". ValueError for numbers that
    are not finite, lie outside of the image, are inverted or enclose nothing.
    """
    width, height = _extent(system, size, resized)
    slack, scale, finite = SLACK[system], (width, height, width, height), all(math.isfinite(v) for v in box)
    if system == "norm1000" and not (finite and all(v == int(v) and 0 <= v <= 1000 for v in box)):
        raise ValueError(f"expected integers from 0 to 1000 (of the image's own width and height), got {list(box)}")
    if not finite:
        raise ValueError(f"expected four finite numbers, got {list(box)}")
    if not all(-slack <= v <= side + slack for v, side in zip(box, scale, strict=True)):
        raise ValueError(f"expected numbers inside of the image ({system}: {width:g} x {height:g}), got {list(box)}")
    if box[0] >= box[2] or box[1] >= box[3]:
        raise ValueError(f"expected x1 < x2 and y1 < y2, got {list(box)}: inverted or without area")
    x1, y1, x2, y2 = (min(1000.0, max(0.0, v * 1000 / side)) for v, side in zip(box, scale, strict=True))
    (left, right), (top, bottom) = _rounded(x1, x2, 1000), _rounded(y1, y2, 1000)
    return left, top, right, bottom


def from_norm1000(
    box: Sequence[int], system: str, size: Size | None = None, resized: Size | None = None
) -> tuple[float, float, float, float]:
    """The numbers that `to_norm1000` reads as this box again, up to one unit; integers but for "norm1"."""
    extent = _extent(system, size, resized)
    if system == "norm1":
        x1, y1, x2, y2 = (v / 1000 for v in box)
        return x1, y1, x2, y2
    return _scaled(box, (1000, 1000), extent)


def rescaled(box: Sequence[float], system: str, size: Size | None = None, resized: Size | None = None) -> Box:
    """Numbers of a text in 0-1000, whatever box they make: none keeps its old unit.

    What stands out of the image does so afterwards, and what is inverted or without area stays that.
    """
    return _scaled(box, _extent(system, size, resized), (1000, 1000))


def extents(system: str, sizes: Sequence[Size], resized: Sequence[Size]) -> list[Extent]:
    """What the numbers of each image end at."""
    return [_extent(system, *both) for both in zip(sizes, resized, strict=True)]


@dataclass
class Numbers:
    """What a file's boxes of one system look like: how many, how many of them were refused, the largest number."""

    system: str
    boxes: int = 0
    refused: int = 0
    largest: float = 0.0

    def add(self, boxes: Iterable[Sequence[float]], refused: bool) -> None:
        for box in boxes:
            self.boxes, self.refused = self.boxes + 1, self.refused + refused
            self.largest = max(self.largest, *(abs(v) for v in box if math.isfinite(v)), 0.0)

    def contradiction(self) -> str | None:
        """What the numbers say against the system; None where nothing does."""
        read = f"{self.boxes} boxes read as {self.system}"
        if not self.boxes:
            return None
        if self.system != "norm1" and self.largest <= 1:
            return f"{read} have no number above 1: norm1?"
        if self.system == "norm1" and self.largest > 1 + SLACK["norm1"]:
            return f"{read} (0 to 1) have numbers up to {self.largest:g}: norm1000 or pixel?"
        if self.system == "norm1000" and self.largest > 1000:
            return f"{read} have numbers up to {self.largest:g}: pixel?"
        if self.system in ("pixel", "resized") and self.refused and self.largest <= 1000:
            return f"{read}: {self.refused} are none inside of their images, and no number exceeds 1000: norm1000?"
        return None


def _extent(system: str, size: Size | None, resized: Size | None) -> Extent:
    if system in ("norm1", "norm1000"):
        return (1, 1) if system == "norm1" else (1000, 1000)
    needed = {"pixel": size, "resized": resized}
    if system not in needed:
        raise ValueError(f"coordinates: expected one of {', '.join(SYSTEMS)}, got {system!r}")
    given = needed[system]
    if given is None:
        raise ValueError(f"coordinates: the system {system} needs the image's size")
    return given


def _scaled(box: Sequence[float], old: Extent, new: Extent) -> Box:
    """Four numbers of an extent (width, height) `old` as integers of the extent `new`."""
    ends = []
    for low, high, unit, to in zip(box[:2], box[2:], old, new, strict=True):
        first, last = low * to / unit, high * to / unit
        ends.append(_rounded(first, last, int(to)) if low < high else (_nearest(first), _nearest(last)))
    (left, right), (top, bottom) = ends
    return left, top, right, bottom


def _nearest(value: float) -> int:
    return math.floor(value + 0.5)


def _rounded(low: float, high: float, limit: int) -> tuple[int, int]:
    """Two different ends within 0 to limit: the nearest ones, or where those are one, the next to the wider side."""
    first, last = _nearest(low), _nearest(high)
    if first < last:
        return first, last
    down = first >= limit or (first > 0 and low + high < 2 * first)
    return (first - 1, first) if down else (first, first + 1)
