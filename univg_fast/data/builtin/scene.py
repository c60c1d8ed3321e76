"""What the tasks share: random photo crops, objects on the lattice, places that do not overlap."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from univg_fast.structs import Box

from .config import BuiltinConfig
from .shapes import COLOURS, SHAPES, Object, draw

ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "centre", "right")
Window = tuple[int, int, int, int]  # left, top, right, bottom; in cells, the last two exclusive


@dataclass(frozen=True)
class Scene:
    """The random stream of one sample, and the crops [n, S, S, 3] it draws from.

    A crop is lattice + max_shift cells wide, an image lattice cells: `view` cuts the image out.
    """

    rng: np.random.Generator
    config: BuiltinConfig
    crops: np.ndarray

    def between(self, low: int, high: int) -> int:
        """An integer from low to high, both included."""
        return int(self.rng.integers(low, high + 1))

    def worlds(self, number: int) -> list[np.ndarray]:
        """Different crops, at their full size; not to be painted on."""
        return [self.crops[i] for i in self.rng.choice(len(self.crops), number, replace=False)]

    def view(self, world: np.ndarray, x: int, y: int) -> np.ndarray:
        """A copy of the image whose upper left corner is at cell (x, y) of the world, in its frame."""
        cell, side, width = self.config.cell, self.config.image_size, self.config.frame
        image = world[y * cell : y * cell + side, x * cell : x * cell + side].copy()
        image[:width], image[:, :width], image[side - width :], image[:, side - width :] = 255, 255, 255, 255
        return image

    def backgrounds(self, number: int) -> list[np.ndarray]:
        shift = self.config.max_shift
        return [self.view(world, self.between(0, shift), self.between(0, shift)) for world in self.worlds(number)]

    def full(self) -> Window:
        return (0, 0, self.config.lattice, self.config.lattice)

    def size(self) -> int:
        return int(self.rng.choice(self.config.object_cells))

    def object(self) -> Object:
        """An object of random colour, shape and size, not placed yet."""
        colour = list(COLOURS)[self.between(0, self.config.num_colours - 1)]
        shape = SHAPES[self.between(0, self.config.num_shapes - 1)]
        return Object(colour, shape, 0, 0, self.size())

    def other(self, target: Object) -> Object:
        """An object that differs from the target in colour, in shape or in both."""
        colours = [colour for colour in list(COLOURS)[: self.config.num_colours] if colour != target.colour]
        shapes = [shape for shape in SHAPES[: self.config.num_shapes] if shape != target.shape]
        colour, shape = colours[self.between(0, len(colours) - 1)], shapes[self.between(0, len(shapes) - 1)]
        if self.rng.random() < self.config.confusable:
            colour, shape = (target.colour, shape) if self.rng.random() < 0.5 else (colour, target.shape)
        return Object(colour, shape, 0, 0, self.size())

    def places(self, side: int, taken: list[Object], window: Window) -> list[tuple[int, int]]:
        """Upper left cells where an object of this side lies inside the window and overlaps none taken."""
        left, top, right, bottom = window
        return [
            (x, y)
            for y in range(top, bottom - side + 1)
            for x in range(left, right - side + 1)
            if not any(_overlap(x, y, side, other) for other in taken)
        ]

    def place(self, item: Object, window: Window) -> Object:
        """The object at a random place inside the window, which must be large enough."""
        free = self.places(item.side, [], window)
        x, y = free[self.between(0, len(free) - 1)]
        return replace(item, x=x, y=y)

    def distract(self, target: Object, taken: list[Object], window: Window) -> list[Object]:
        """As many distractors as the config asks for and the window has room for."""
        placed: list[Object] = []
        for _ in range(self.between(*self.config.distractors)):
            item = self.other(target)
            free = self.places(item.side, taken + placed, window)
            if free:
                x, y = free[self.between(0, len(free) - 1)]
                placed.append(replace(item, x=x, y=y))
        return placed

    def paint(self, image: np.ndarray, items: list[Object]) -> None:
        """Draw the objects into the image, in place."""
        for item in items:
            draw(image, item, self.config.cell)

    def box(self, item: Object, x: int = 0, y: int = 0) -> Box:
        """The object's box in the image whose upper left corner is at cell (x, y)."""
        left, top = item.x - x, item.y - y
        edges = (left, top, left + item.side, top + item.side)
        x1, y1, x2, y2 = (round(1000 * edge / self.config.lattice) for edge in edges)
        return (x1, y1, x2, y2)

    def whereabouts(self, item: Object, image: int) -> str:
        """ "red circle top left in image 1": the third of the image that holds the object's centre."""
        row, column = (3 * (2 * start + item.side) // (2 * self.config.lattice) for start in (item.y, item.x))
        return f"{item.name} {ROWS[row]} {COLUMNS[column]} in image {image}"


def _overlap(x: int, y: int, side: int, other: Object) -> bool:
    across = x < other.x + other.side and other.x < x + side
    down = y < other.y + other.side and other.y < y + side
    return across and down
