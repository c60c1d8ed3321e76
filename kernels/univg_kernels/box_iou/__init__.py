"""The door of `box_iou`."""

from __future__ import annotations

from torch import Tensor

from .._checks import FLOATS, INTS, check_tensor
from .._dispatch import Backend, face
from .._rows import math_dtype
from ..config import check_choice


def box_iou(
    boxes1: Tensor,
    boxes2: Tensor,
    *,
    mode: str = "aligned",
    kind: str = "iou",
    convention: str = "continuous",
    backend: Backend = "auto",
) -> Tensor:
    """IoU or GIoU of boxes (x1, y1, x2, y2), any one unit.

    continuous: areas of (x2 - x1)·(y2 - y1); an inverted or empty box has area 0 and IoU 0.
    univg_r1: the reward's rule; an overlap of one unit or less on either axis counts as none.

    Args:
        boxes1: [n, 4], boxes2: [n, 4] ("aligned") or [m, 4] ("pairwise"), floating point or int32|int64.
        kind: "iou" or "giou" (continuous only).
    Returns: [n] or [n, m] fp32 (fp64 for fp64 input); not differentiable.
    Raises: ValueError for wrong shapes, dtypes or choices.
    Source: UniVG-R1's `iou_reward`; GIoU: arXiv 1902.09630.
    """
    op = "box_iou"
    check_choice(op, "mode", mode, ("aligned", "pairwise"))
    check_choice(op, "kind", kind, ("iou", "giou"))
    check_choice(op, "convention", convention, ("continuous", "univg_r1"))
    if kind == "giou" and convention != "continuous":
        raise ValueError(f"{op}: kind 'giou' needs convention 'continuous', got {convention!r}")
    a = check_tensor(op, "boxes1", boxes1, (None, 4), (*FLOATS, *INTS))
    n = a.shape[0] if mode == "aligned" else None
    b = check_tensor(op, "boxes2", boxes2, (n, 4), (*FLOATS, *INTS), a.device)
    dtype = max(math_dtype(a), math_dtype(b), key=lambda d: d.itemsize)
    return face(op, a.device, backend).box_iou(a.detach().to(dtype), b.detach().to(dtype), mode, kind, convention)
