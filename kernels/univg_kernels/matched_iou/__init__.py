"""The door of `matched_iou`."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .._checks import FLOATS, INTS, check_offsets, check_tensor
from .._dispatch import Backend, face
from ..config import check_choice


class MatchedIou(NamedTuple):
    """total [S] fp64, the sum of the matched IoUs · matches [S] int64, how many pairs · partner [n] int64: of each box
    of the first side its row in boxes2, -1 for none · iou [n] fp64: with that partner, 0 for none."""

    total: Tensor
    matches: Tensor
    partner: Tensor
    iou: Tensor


def matched_iou(
    boxes1: Tensor,
    boxes2: Tensor,
    offsets1: Tensor,
    offsets2: Tensor,
    *,
    images1: Tensor | None = None,
    images2: Tensor | None = None,
    convention: str = "continuous",
    backend: Backend = "auto",
) -> MatchedIou:
    """Match boxes to boxes, each to one at most, so that the sum of their IoUs is largest; segment by segment.

    With images, only boxes of equal image numbers are matched; a negative number is at home in every image. Pairs that
    do not overlap are no match. Where several matchings are best, which of them is found is not defined; their sum is.
    In fp64, on the CPU, not differentiable; O(n·m·min(n, m)) for a segment of n and m boxes.

    Args:
        boxes1: [n, 4], boxes2: [m, 4], any floating dtype or int32|int64.
        offsets1, offsets2: [S+1] each; segment s is boxes1[offsets1[s] : offsets1[s+1]], and the same of boxes2.
        images1: [n], images2: [m] int32|int64: both or neither.
        convention: "continuous" or "univg_r1", as in `box_iou`, which also says what a NaN is worth.
    Raises: ValueError for wrong shapes, dtypes or offsets, and for tensors on a GPU.
    Source: Kuhn's assignment problem; R. Jonker and A. Volgenant, Computing 38 (1987).
    """
    op = "matched_iou"
    check_choice(op, "convention", convention, ("continuous", "univg_r1"))
    a = check_tensor(op, "boxes1", boxes1, (None, 4), (*FLOATS, *INTS))
    b = check_tensor(op, "boxes2", boxes2, (None, 4), (*FLOATS, *INTS), a.device)
    if not a.is_cpu:
        raise ValueError(f"{op}: boxes1 must be on the CPU, where boxes are matched, got {a.device}; use boxes1.cpu()")
    first = check_offsets(op, "offsets1", offsets1, a.shape[0], a.device, "boxes1").long()
    second = check_offsets(op, "offsets2", offsets2, b.shape[0], a.device, "boxes2").long()
    if first.shape != second.shape:
        raise ValueError(f"{op}: offsets2 must have {len(first)} entries like offsets1, got {len(second)}")
    if (images1 is None) != (images2 is None):
        raise ValueError(f"{op}: images1 and images2 go together, got images{1 if images2 is None else 2} only")
    images = None
    if images1 is not None:
        images = (
            check_tensor(op, "images1", images1, (a.shape[0],), INTS, a.device).long().contiguous(),
            check_tensor(op, "images2", images2, (b.shape[0],), INTS, a.device).long().contiguous(),
        )
    boxes = a.detach().to(torch.float64).contiguous(), b.detach().to(torch.float64).contiguous()
    return MatchedIou(*face(op, a.device, backend).matched_iou(*boxes, first, second, images, convention))
