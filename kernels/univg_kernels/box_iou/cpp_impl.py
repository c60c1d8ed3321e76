"""C++ face of `box_iou`."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _library

_library.load()


def box_iou(boxes1: Tensor, boxes2: Tensor, mode: str, kind: str, convention: str) -> Tensor:
    flags = (mode == "pairwise", kind == "giou", convention == "univg_r1")
    return torch.ops.univg_kernels.box_iou(boxes1.contiguous(), boxes2.contiguous(), *flags)


@torch.library.register_fake("univg_kernels::box_iou")
def _(boxes1: Tensor, boxes2: Tensor, pairwise: bool, giou: bool, univg_r1: bool) -> Tensor:
    n, m = boxes1.shape[0], boxes2.shape[0]
    return boxes1.new_empty((n, m) if pairwise else (n,))
