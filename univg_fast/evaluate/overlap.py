"""IoU of two boxes in plain numbers: integers stay exact, and nothing depends on how many are scored at once."""

from __future__ import annotations

from collections.abc import Sequence

Numbers = Sequence[float]
LARGEST = 1e150  # beyond it an area overflows; the IoU with a box of any image is 0 long before


def box_fault(box: Numbers | None) -> str | None:
    """Why a box cannot be scored: no_box, bad_box (not 4 finite numbers) or inverted_box; None if it can."""
    if box is None:
        return "no_box"
    if (
        not isinstance(box, list | tuple)
        or len(box) != 4
        or not all(isinstance(v, int | float) and not isinstance(v, bool) and abs(v) <= LARGEST for v in box)
    ):  # a NaN fails the comparison
        return "bad_box"
    return None if box[2] > box[0] and box[3] > box[1] else "inverted_box"


def iou(box: Numbers | None, truth: Numbers | None, epsilon: float = 0.0) -> float:
    """Intersection over union (+ `epsilon`) of two xyxy boxes in the same units, without clipping.

    0.0 where either of them cannot be scored (`box_fault`), and where they only touch.
    """
    if box is None or truth is None or box_fault(box) or box_fault(truth):
        return 0.0
    left, top = max(box[0], truth[0]), max(box[1], truth[1])
    right, bottom = min(box[2], truth[2]), min(box[3], truth[3])
    if right <= left or bottom <= top:
        return 0.0
    common = (right - left) * (bottom - top)
    union = (box[2] - box[0]) * (box[3] - box[1]) + (truth[2] - truth[0]) * (truth[3] - truth[1]) - common
    return float(common / (union + epsilon if epsilon else union))


def area(box: Numbers) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
