"""Plain coloured objects whose tight bounding box is exactly the square they are drawn in."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (230, 24, 28),
    "green": (22, 176, 44),
    "blue": (28, 62, 238),
    "yellow": (248, 222, 24),
    "purple": (158, 34, 188),
    "cyan": (34, 214, 228),
}
SHAPES = ("circle", "square", "triangle", "cross")


@dataclass(frozen=True)
class Object:
    """A coloured shape on the lattice: its upper left cell and its side, in cells."""

    colour: str
    shape: str
    x: int
    y: int
    side: int

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


@cache
def mask(shape: str, side: int) -> np.ndarray:
    """[side, side] bool; its first and last row and column each hold at least one True."""
    edge = np.arange(side)
    y, x = edge[:, None] + 0.5, edge[None, :] + 0.5
    half = side / 2
    if shape == "square":
        return np.ones((side, side), bool)
    if shape == "circle":
        return (x - half) ** 2 + (y - half) ** 2 <= half**2
    if shape == "triangle":  # apex up; row y is as wide as its lower edge
        return np.abs(x - half) <= (edge[:, None] + 1) / 2
    arm = side / 6
    return (np.abs(x - half) <= arm) | (np.abs(y - half) <= arm)


def draw(image: np.ndarray, item: Object, cell: int) -> None:
    """Paint an object into `image` [H, W, 3] uint8 in place; it may lie partly or wholly outside."""
    side = item.side * cell
    top, left = item.y * cell, item.x * cell
    y0, x0 = max(top, 0), max(left, 0)
    y1, x1 = min(top + side, image.shape[0]), min(left + side, image.shape[1])
    if y0 < y1 and x0 < x1:
        inside = mask(item.shape, side)[y0 - top : y1 - top, x0 - left : x1 - left]
        image[y0:y1, x0:x1][inside] = COLOURS[item.colour]
