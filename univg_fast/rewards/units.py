"""Boxes of completions in 0-1000, where a model counts in something else, such as pixels (`Family.coordinates`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from univg_kernels.scan_boxes import ScannedBoxes

from univg_fast.structs import Record

Array = np.ndarray
Extent = tuple[float, float]  # the numbers of an image's right and lower edge
THOUSANDTHS = ((1000.0, 1000.0),)  # of a text without images: there is nothing else to count in


def in_thousandths(found: ScannedBoxes, records: Sequence[Record], extents: Sequence[Sequence[Extent]]) -> Array:
    """The boxes [M, 4] of B texts whose images end at `extents`; not rounded.

    A box lies in the image that it names. Where that is none, the n-th box of a text lies in that of the record's n-th
    target, else in the first target's, else in image 0: as `univg_fast.data.modeltext` has it for whole texts.
    """
    offsets, named = found.offsets.numpy(), found.images.numpy()
    sizes, starts, there = _flat([each or THOUSANDTHS for each in extents])
    targets, firsts, known = _flat([[_image(target.image) for target in record.targets] or [-1] for record in records])
    text = np.repeat(np.arange(len(records)), np.diff(offsets))
    nth = np.arange(len(text)) - offsets[text]
    own = np.where(nth < known[text], targets[firsts[text] + np.minimum(nth, known[text] - 1)], -1)
    told = np.where(own < 0, targets[firsts[text]], own)
    image = np.where((named >= 0) & (named < there[text]), named, np.clip(told, 0, there[text] - 1))
    return found.boxes.numpy() * 1000 / np.tile(sizes.reshape(-1, 2)[starts[text] + image], 2)


def _image(image: int | None) -> int:
    return -1 if image is None else image


def _flat(rows: Sequence[Sequence[Any]]) -> tuple[Array, Array, Array]:
    """(what all rows hold, where each begins, how long it is)."""
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    return np.array([item for row in rows for item in row]), np.cumsum(lengths) - lengths, lengths
