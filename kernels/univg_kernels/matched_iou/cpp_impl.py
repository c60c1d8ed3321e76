"""C++ face of `matched_iou`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _library

_library.load()
Four = tuple[Tensor, Tensor, Tensor, Tensor]


def matched_iou(
    boxes1: Tensor, boxes2: Tensor, first: Tensor, second: Tensor, images: tuple[Tensor, Tensor] | None, convention: str
) -> Four:
    both = (None, None) if images is None else images
    return torch.ops.univg_kernels.matched_iou(boxes1, boxes2, first, second, *both, convention == "univg_r1")


@torch.library.register_fake("univg_kernels::matched_iou")
def _(boxes1: Tensor, boxes2: Tensor, first: Tensor, *args: Any) -> Four:
    n, segments = boxes1.shape[0], first.shape[0] - 1
    total, iou = boxes1.new_empty(segments), boxes1.new_empty(n)
    return total, first.new_empty(segments), first.new_empty(n), iou
