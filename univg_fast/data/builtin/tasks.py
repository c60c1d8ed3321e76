"""One function per kind of task: from a random stream to images, a question and its exact answer.

The kinds are MIG-Bench's. Every function keeps two promises that the tests check from the pixels: the question has one
answer, and the box is the tight bounding box of what it asks for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from univg_fast.structs import Box

from .config import BuiltinConfig
from .shapes import COLOURS, SHAPES, Object, draw


@dataclass(frozen=True)
class Draft:
    """A sample before it is written. `think` is the reasoning of its stage-1 answer."""

    images: list[np.ndarray]  # [H, W, 3] uint8
    question: str
    think: str
    box: Box
    target_image: int  # 0-based


@dataclass(frozen=True)
class Scene:
    """The random stream and the crops [n, S, S, 3] that a task draws from, S = (lattice + max_shift) cells."""

    rng: np.random.Generator
    config: BuiltinConfig
    crops: np.ndarray

    def between(self, low: int, high: int) -> int:
        """An integer from low to high, both included."""
        return int(self.rng.integers(low, high + 1))

    def worlds(self, number: int) -> list[np.ndarray]:
        """Different crops, at their full size."""
        return [self.crops[i] for i in self.rng.choice(len(self.crops), number, replace=False)]

    def view(self, world: np.ndarray, x: int, y: int) -> np.ndarray:
        """A copy of the image whose upper left corner is at cell (x, y) of the world."""
        cell, side = self.config.cell, self.config.image_size
        return world[y * cell : y * cell + side, x * cell : x * cell + side].copy()

    def backgrounds(self, number: int) -> list[np.ndarray]:
        shift = self.config.max_shift
        return [
            self.view(world, self.between(0, shift), self.between(0, shift)) for world in self.worlds(number)
        ]

    def target(self) -> Object:
        """An object of random colour, shape and size, not placed yet."""
        colour = list(COLOURS)[self.between(0, self.config.num_colours - 1)]
        shape = SHAPES[self.between(0, self.config.num_shapes - 1)]
        return Object(colour, shape, 0, 0, self.size())

    def size(self) -> int:
        return int(self.rng.choice(self.config.object_cells))

    def other(self, target: Object) -> Object:
        """An object that is not of the target's colour and shape both; it may share one of them."""
        colours = [colour for colour in list(COLOURS)[: self.config.num_colours] if colour != target.colour]
        shapes = [shape for shape in SHAPES[: self.config.num_shapes] if shape != target.shape]
        colour, shape = colours[self.between(0, len(colours) - 1)], shapes[self.between(0, len(shapes) - 1)]
        if self.rng.random() < self.config.confusable:
            colour, shape = (target.colour, shape) if self.rng.random() < 0.5 else (colour, target.shape)
        return Object(colour, shape, 0, 0, self.size())

    def place(
        self, item: Object, taken: list[Object], low: int, high: tuple[int, int] | int
    ) -> Object | None:
        """The object at a random free place of the cells [low, high)^2 on each axis; None if there is no room."""
        right, bottom = high if isinstance(high, tuple) else (high, high)
        free = [
            (x, y)
            for y in range(low, bottom - item.side + 1)
            for x in range(low, right - item.side + 1)
            if not any(_overlap(x, y, item.side, other) for other in taken)
        ]
        if not free:
            return None
        x, y = free[self.between(0, len(free) - 1)]
        return replace(item, x=x, y=y)

    def distract(self, target: Object, taken: list[Object], cells: int) -> list[Object]:
        """Place as many distractors as the config asks for and the cells x cells lattice has room for."""
        placed: list[Object] = []
        for _ in range(self.between(*self.config.distractors)):
            item = self.place(self.other(target), taken + placed, 0, cells)
            if item is not None:
                placed.append(item)
        return placed

    def paint(self, image: np.ndarray, items: list[Object]) -> np.ndarray:
        for item in items:
            draw(image, item, self.config.cell)
        return image

    def box(self, item: Object) -> Box:
        unit = 1000 // self.config.lattice
        return (item.x * unit, item.y * unit, (item.x + item.side) * unit, (item.y + item.side) * unit)


def _overlap(x: int, y: int, side: int, other: Object) -> bool:
    return x < other.x + other.side and other.x < x + side and y < other.y + other.side and other.y < y + side


def group_grounding(scene: Scene) -> Draft:
    """Which image holds the described object, and where?"""
    lattice = scene.config.lattice
    images = scene.backgrounds(scene.between(*scene.config.images_per_sample))
    where = scene.between(0, len(images) - 1)
    target = scene.place(scene.target(), [], 0, lattice)
    assert target is not None  # an empty lattice has room: BuiltinConfig checks object_cells
    for i, image in enumerate(images):
        held = [target] if i == where else []
        scene.paint(image, held + scene.distract(target, held, lattice))
    think = f"The {target.name} is in image {where + 1}."
    return Draft(images, f"Find the {target.name}.", think, scene.box(target), where)


def refer_grounding(scene: Scene) -> Draft:
    """The one object of image 1, found among others in image 2, where it has another place and perhaps another size."""
    lattice = scene.config.lattice
    first, second = scene.backgrounds(2)
    shown = scene.place(scene.target(), [], 0, lattice)
    assert shown is not None
    target = scene.place(replace(shown, side=scene.size()), [], 0, lattice)
    assert target is not None
    scene.paint(first, [shown])
    scene.paint(second, [target, *scene.distract(target, [target], lattice)])
    think = f"The {target.name} is in image 2."
    return Draft([first, second], "Find the object of image 1 in image 2.", think, scene.box(target), 1)


MAKERS: dict[str, Callable[[Scene], Draft]] = {
    "group_grounding": group_grounding,
    "refer_grounding": refer_grounding,
}
