"""CUDA C++ face of `box_iou`: the ops of cpp_impl.py, which have kernels for CUDA tensors (never run on a GPU yet)."""

from __future__ import annotations

from torch import Tensor

from .cpp_impl import ops
from .pairs import Offsets, ragged_pairs


def box_iou(boxes1: Tensor, boxes2: Tensor, offsets: Offsets | None, mode: str, kind: str, convention: str) -> Tensor:
    if offsets is not None:  # the boxes of each pair, side by side; autograd adds up what belongs to one box
        first, second = ragged_pairs(offsets)
        boxes1, boxes2 = boxes1[first], boxes2[second]
    flags = (mode == "pairwise", kind == "giou", convention == "univg_r1")
    return ops.box_iou(boxes1.contiguous(), boxes2.contiguous(), *flags)
