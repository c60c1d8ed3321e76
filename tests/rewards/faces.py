"""What the faces of `scan_boxes` read in a text, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from univg_kernels.scan_boxes import ScannedBoxes, scan_boxes


def rows(found: ScannedBoxes) -> list[tuple[Any, ...]]:
    """Of each text its facts, boxes, images and labels."""
    facts = zip(*(x.tolist() for x in found[:4]), strict=True)
    ends = found.offsets.tolist()
    spans = [slice(begin, end) for begin, end in zip(ends, ends[1:], strict=False)]
    arrays = found.boxes.tolist(), found.images.tolist(), found.labels
    return [(*fact, *(array[span] for array in arrays)) for fact, span in zip(facts, spans, strict=True)]


def differing(texts: Sequence[str], mode: str, styles: Sequence[str], cot: Sequence[bool]) -> list[tuple[Any, ...]]:
    """(text, what C++ reads in it, what the reference does) where that differs."""
    both = (rows(scan_boxes(texts, mode=mode, styles=styles, cot=cot, backend=b)) for b in ("cpp", "reference"))
    return [(t, a, b) for t, a, b in zip(texts, *both, strict=True) if a != b]
