"""C++ face of `box_iou`: registered ops with fakes and autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import _library
from .pairs import Offsets

_library.load()
ops = torch.ops.univg_kernels


def box_iou(boxes1: Tensor, boxes2: Tensor, offsets: Offsets | None, mode: str, kind: str, convention: str) -> Tensor:
    boxes, flags = (boxes1.contiguous(), boxes2.contiguous()), (kind == "giou", convention == "univg_r1")
    if offsets is not None:
        return ops.box_iou_ragged(*boxes, *offsets, *flags)
    return ops.box_iou(*boxes, mode == "pairwise", *flags)


@torch.library.register_fake("univg_kernels::box_iou")
def _(boxes1: Tensor, boxes2: Tensor, pairwise: bool, giou: bool, univg_r1: bool) -> Tensor:
    n, m = boxes1.shape[0], boxes2.shape[0]
    return boxes1.new_empty((n, m) if pairwise else (n,))


@torch.library.register_fake("univg_kernels::box_iou_ragged")
def _(boxes1: Tensor, boxes2: Tensor, first: Tensor, second: Tensor, pairs: int, giou: bool, univg_r1: bool) -> Tensor:
    return boxes1.new_empty(pairs)


@torch.library.register_fake("univg_kernels::box_iou_backward")
def _(grad: Tensor, boxes1: Tensor, boxes2: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    return boxes1.new_empty(boxes1.shape), boxes2.new_empty(boxes2.shape)


@torch.library.register_fake("univg_kernels::box_iou_ragged_backward")
def _(grad: Tensor, boxes1: Tensor, boxes2: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    return boxes1.new_empty(boxes1.shape), boxes2.new_empty(boxes2.shape)


def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*(x for x in inputs if isinstance(x, Tensor)))
    ctx.flags = [x for x in inputs if isinstance(x, bool)]


@once_differentiable
def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return *ops.box_iou_backward(grad.contiguous(), *ctx.saved_tensors, *ctx.flags), None, None, None


@once_differentiable
def _ragged_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return *ops.box_iou_ragged_backward(grad.contiguous(), *ctx.saved_tensors, *ctx.flags), *[None] * 5


torch.library.register_autograd("univg_kernels::box_iou", _backward, setup_context=setup_context)
torch.library.register_autograd("univg_kernels::box_iou_ragged", _ragged_backward, setup_context=setup_context)
