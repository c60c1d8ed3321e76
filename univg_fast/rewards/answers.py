"""What the reward terms look at: a batch of completions, parsed once, beside what a right answer names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from univg_kernels.scan_boxes import ScannedBoxes, scan_boxes

from univg_fast.structs import Box, Record

from .parse import Answer, answers_of, as_box
from .units import Extent, in_thousandths

Array = np.ndarray
NO_IMAGE = 10**6  # of a box that names none, where that must not pass for any
WRONG_IMAGE = 10**6 + 1  # of a box that names one that the record does not have


@dataclass(frozen=True)
class Settings:
    """The numbers that terms have, as the section `rewards` of the configuration has them."""

    parser: str = "univg_r1"  # a mode of `parse`
    iou_threshold: float = 0.5
    iou_low: float = 0.1
    iou_high: float = 0.9
    length_limit: int = 256  # tokens
    length_buffer: int = 64
    repetition_ngram: int = 3

    def __post_init__(self) -> None:
        for name in ("length_limit", "length_buffer", "repetition_ngram"):
            if getattr(self, name) < 1:
                raise ValueError(f"rewards.{name}: expected a number above 0, got {getattr(self, name)}")
        for name in ("iou_threshold", "iou_low", "iou_high"):
            if not 0 <= getattr(self, name) <= 1:  # nor is NaN
                raise ValueError(f"rewards.{name}: expected a number from 0 to 1, got {getattr(self, name)}")
        if self.iou_low > self.iou_high:
            raise ValueError(
                f"rewards.iou_low: expected at most rewards.iou_high ({self.iou_high}), got {self.iou_low}"
            )


@dataclass(frozen=True)
class Boxes:
    """Boxes [M, 4] fp64 of B texts or records, those of number i at offsets[i] : offsets[i+1]; images [M], -1: none,
    WRONG_IMAGE: one that is not there."""

    boxes: Array
    images: Array
    offsets: Array

    @property
    def counts(self) -> Array:
        return np.diff(self.offsets)


@dataclass(frozen=True)
class Answers:
    """B completions, the record that each answers, and their lengths in tokens where they are known.

    The texts are the model's own, so that forms are judged as it wrote them; boxes (`found`, `answers`, `given`) are in
    0-1000. `extents`: what the model's numbers end at, of each image of each text; None: at 1000.
    """

    texts: Sequence[str]
    records: Sequence[Record]
    settings: Settings = field(default_factory=Settings)
    lengths: Array | None = None
    extents: Sequence[Sequence[Extent]] | None = None

    def part(self, start: int, end: int) -> Answers:
        """The same of the completions start : end."""
        lengths = None if self.lengths is None else self.lengths[start:end]
        extents = None if self.extents is None else self.extents[start:end]
        return Answers(self.texts[start:end], self.records[start:end], self.settings, lengths, extents)

    @cached_property
    def found(self) -> ScannedBoxes:
        """What the parser says, as the kernels' arrays."""
        styles = [record.answer_style for record in self.records]
        cot = [record.cot for record in self.records]
        found = scan_boxes(self.texts, mode=self.settings.parser, styles=styles, cot=cot)
        if self.extents is None:
            return found
        return found._replace(boxes=torch.from_numpy(in_thousandths(found, self.records, self.extents)))

    @cached_property
    def answers(self) -> list[Answer]:
        """The same as objects, for terms that are not about arrays."""
        return answers_of(self.found)

    @cached_property
    def given(self) -> Boxes:
        """The boxes of the texts. Where a record has one image, a box that names none means that."""
        offsets, images = self.found.offsets.numpy(), self.found.images.numpy()
        there = np.repeat(np.array([len(record.images) for record in self.records], np.int64), np.diff(offsets))
        named = np.where((images < -1) | (images >= there), WRONG_IMAGE, images)  # the scanner has "Image-0" as -2
        return Boxes(self.found.boxes.numpy(), np.where((there == 1) & (named == -1), 0, named), offsets)

    @cached_property
    def wanted(self) -> Boxes:
        """The targets of the records. ValueError for a record that has none."""
        places: dict[int, int] = {}
        order = np.array([places.setdefault(id(record), len(places)) for record in self.records], np.int64)
        distinct = list({id(record): record for record in self.records}.values())
        for record in distinct:
            if not record.targets:
                raise ValueError(f"reward: the record {record.uid} ({record.source}) has no box to compare with")
        boxes = np.array([t.box for r in distinct for t in r.targets], np.float64).reshape(-1, 4)
        one = [0 if len(r.images) == 1 else -1 for r in distinct for _ in r.targets]
        images = [t.image if t.image is not None else -1 for r in distinct for t in r.targets]
        told = np.where(np.array(images, np.int64) < 0, np.array(one, np.int64), np.array(images, np.int64))
        counts = np.array([len(r.targets) for r in distinct], np.int64)
        starts, sizes = np.cumsum(counts) - counts, counts[order]
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
        rows = np.repeat(starts[order] - offsets[:-1], sizes) + np.arange(offsets[-1])
        return Boxes(boxes[rows], told[rows], offsets)

    @cached_property
    def answered(self) -> Array:
        """[B] bool: where a box was found."""
        return self.given.counts > 0

    @cached_property
    def first_given(self) -> Array:
        """[B', 4]: the first box of each text that has one."""
        return self.given.boxes[self.given.offsets[:-1][self.answered]]

    @cached_property
    def first_wanted(self) -> Array:
        """[B', 4]: the first target of the same texts."""
        return self.wanted.boxes[self.wanted.offsets[:-1][self.answered]]

    def spread(self, values: Array, missing: float = 0.0) -> Array:
        """[B] from the values of the texts that have a box."""
        out = np.full(len(self.texts), missing)
        out[self.answered] = values
        return out

    def first_boxes(self) -> list[Box | None]:
        """The first box of each text, for the log."""
        given = self.first_given
        if (np.abs(given) < 2**53).all() and (
            given == np.rint(given)
        ).all():  # whole numbers, as nearly always: at once
            boxes = iter(map(tuple, given.astype(np.int64).tolist()))
        else:
            boxes = iter(map(as_box, given.tolist()))
        return [next(boxes) if answered else None for answered in self.answered.tolist()]


Term = Callable[[Answers], Array]
