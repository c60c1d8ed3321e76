"""The door of `box_iou`."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import FLOATS, INTS, check_offsets, check_tensor
from .._dispatch import Backend, face
from .._rows import math_dtype
from ..config import check_choice
from .pairs import Offsets, pair_offsets


def box_iou(
    boxes1: Tensor,
    boxes2: Tensor,
    *,
    mode: str = "aligned",
    kind: str = "iou",
    convention: str = "continuous",
    offsets1: Tensor | None = None,
    offsets2: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """IoU or GIoU of boxes (x1, y1, x2, y2), any one unit; differentiable by both.

    continuous: areas of (x2 - x1)·(y2 - y1); an inverted or empty box has area 0 and IoU 0.
    univg_r1: the reward's rule; an overlap of one unit or less on either axis counts as none.
    A box with NaN or an infinity gives 0 with every other, and no gradient. All arithmetic is in fp64, so any finite
    fp32 boxes have the IoU that exact numbers have; fp64 boxes where coordinates are within 2^510 (beyond it: 0) and
    areas above 2^-1022. The slope of an edge is about 1 / side: below 2^-127 it is more than fp32 holds, and infinite.
    Where edges of both boxes lie on one line, each gets half of the gradient.

    Args:
        boxes1: [n, 4], boxes2: [n, 4] ("aligned") or [m, 4] ("pairwise", "ragged"), floating point or int32|int64.
        kind: "iou" or "giou" (continuous only).
        offsets1, offsets2: [S+1] each, for "ragged": boxes meet within their segment only. On CUDA this waits for
            the device, to learn the number of pairs.
    Returns: [n], [n, m], or for "ragged" [pairs], segment after segment and each row by row, as `pair_offsets` says;
        fp32 (fp64 for fp64 input).
    Raises: ValueError for wrong shapes, dtypes, offsets or choices.
    Source: UniVG-R1's `iou_reward`; GIoU: arXiv 1902.09630.
    """
    op = "box_iou"
    check_choice(op, "mode", mode, ("aligned", "pairwise", "ragged"))
    check_choice(op, "kind", kind, ("iou", "giou"))
    check_choice(op, "convention", convention, ("continuous", "univg_r1"))
    if kind == "giou" and convention != "continuous":
        raise ValueError(f"{op}: kind 'giou' needs convention 'continuous', got {convention!r}")
    if (mode == "ragged") != (offsets1 is not None and offsets2 is not None) or (offsets1 is None) != (
        offsets2 is None
    ):
        given = " and ".join(n for n, x in (("offsets1", offsets1), ("offsets2", offsets2)) if x is not None)
        raise ValueError(
            f"{op}: offsets1 and offsets2 go with mode 'ragged', got mode {mode!r} with {given or 'neither'}"
        )
    a = check_tensor(op, "boxes1", boxes1, (None, 4), (*FLOATS, *INTS))
    n = a.shape[0] if mode == "aligned" else None
    b = check_tensor(op, "boxes2", boxes2, (n, 4), (*FLOATS, *INTS), a.device)
    offsets = None
    if offsets1 is not None and offsets2 is not None:
        first = check_offsets(op, "offsets1", offsets1, a.shape[0], a.device, "boxes1").long()
        second = check_offsets(op, "offsets2", offsets2, b.shape[0], a.device, "boxes2").long()
        if first.shape != second.shape:
            raise ValueError(f"{op}: offsets2 must have {len(first)} entries like offsets1, got {len(second)}")
        offsets = Offsets(first, second, int(pair_offsets(first, second)[-1]))
    dtype = max(math_dtype(a), math_dtype(b), key=lambda d: d.itemsize)
    exact = dtype if a.is_floating_point() and b.is_floating_point() else torch.float64  # integers above 2^24
    return face(op, a.device, backend).box_iou(a.to(exact), b.to(exact), offsets, mode, kind, convention).to(dtype)
