"""The knobs of the built-in data set."""

from __future__ import annotations

from dataclasses import dataclass

from .shapes import COLOURS, SHAPES

TASKS = ("group_grounding", "refer_grounding", "static_diff", "region", "object_tracking")


@dataclass(frozen=True)
class BuiltinConfig:
    """Everything the built-in samples depend on: equal configs give equal bytes.

    The images are squares of `image_size` pixels under a grid of `lattice` x `lattice` cells; objects fill
    whole cells, so that box coordinates are multiples of 1000 / lattice, rounded. To make it harder: a finer
    lattice, more images, more distractors, more of them confusable, more sizes; to make it easier: fewer
    colours and shapes, a weaker background.
    """

    seed: int = 0
    tasks: tuple[str, ...] = ("group_grounding", "refer_grounding")  # in turn; twice named, twice as often
    sft_tasks: tuple[str, ...] = ()  # the tasks of the stage-1 file, where they are others; empty: `tasks`
    image_size: int = 112  # side, px
    lattice: int = 4  # cells per side
    frame: int = 0  # width of a white frame around every image, px: shows a small model where the edges are
    object_cells: tuple[int, ...] = (1, 2)  # sides that objects and regions may have, in cells
    images_per_sample: tuple[int, int] = (2, 3)  # fewest and most, where the task leaves it open
    distractors: tuple[int, int] = (1, 2)  # fewest and most other objects in an image
    confusable: float = 0.5  # chance that a distractor shares the target's colour or its shape
    num_colours: int = 6
    num_shapes: int = 4
    max_shift: int = 1  # cells that the camera moves in object_tracking, along each axis
    background: float = 1.0  # contrast of the photographs: 1 as they are, 0 plain grey
    crops: int = 256  # different photo crops in each of the three files
    num_sft: int = 3000
    num_grpo: int = 400
    num_eval: int = 400

    def __post_init__(self) -> None:
        for name in ("tasks", "sft_tasks", "object_cells", "images_per_sample", "distractors"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # YAML and JSON give lists
        known = f"some of {', '.join(TASKS)}"
        _require(bool(self.tasks) and set(self.tasks) <= set(TASKS), "tasks", known, self.tasks)
        _require(set(self.sft_tasks) <= set(TASKS), "sft_tasks", known, self.sft_tasks)
        _require(self.lattice >= 1, "lattice", "at least 1", self.lattice)
        _require(0 <= 8 * self.frame <= self.image_size, "frame", "0 to image_size / 8", self.frame)
        _require(
            self.image_size >= 7 * self.lattice and self.image_size % self.lattice == 0,
            "image_size",
            f"a multiple of lattice={self.lattice} with cells of at least 7 px",
            self.image_size,
        )
        largest = self.lattice - self.max_shift
        _require(self.max_shift >= 1, "max_shift", "at least 1", self.max_shift)
        _require(
            bool(self.object_cells) and all(1 <= cells <= largest for cells in self.object_cells),
            "object_cells",
            f"sizes from 1 to lattice - max_shift = {largest}",
            self.object_cells,
        )
        low, high = self.images_per_sample
        _require(2 <= low <= high, "images_per_sample", "2 <= fewest <= most", self.images_per_sample)
        _require(self.crops >= high, "crops", f"at least {high}, the most images of a sample", self.crops)
        low, high = self.distractors
        _require(0 <= low <= high, "distractors", "0 <= fewest <= most", self.distractors)
        _require(0 <= self.confusable <= 1, "confusable", "0 to 1", self.confusable)
        _require(0 <= self.background <= 1, "background", "0 to 1", self.background)
        _require(2 <= self.num_colours <= len(COLOURS), "num_colours", f"2 to {len(COLOURS)}", self.num_colours)
        _require(2 <= self.num_shapes <= len(SHAPES), "num_shapes", f"2 to {len(SHAPES)}", self.num_shapes)
        for name in ("num_sft", "num_grpo", "num_eval"):
            _require(getattr(self, name) >= 0, name, "at least 0", getattr(self, name))

    @property
    def cell(self) -> int:
        """Side of a cell, px."""
        return self.image_size // self.lattice


def _require(ok: bool, key: str, expected: str, got: object) -> None:
    if not ok:
        raise ValueError(f"data.builtin.{key}: expected {expected}, got {got!r}")
