"""Triton face of `box_iou`: one lane per pair."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._triton.launch import launch

BLOCK = 512
WARPS = 4


@triton.jit
def _area(width, height):
    return tl.maximum(width, 0.0) * tl.maximum(height, 0.0)


@triton.jit(do_not_specialize=["pairs", "columns"])
def box_iou_kernel(boxes1, boxes2, out, pairs, columns, PAIRWISE: tl.constexpr, GIOU: tl.constexpr,
                   UNIVG_R1: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Pair i is (i, i), or (i // columns, i % columns) if PAIRWISE."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < pairs
    p1 = boxes1 + (i // columns if PAIRWISE else i) * 4
    p2 = boxes2 + (i % columns if PAIRWISE else i) * 4
    ax1, ay1 = tl.load(p1, inside, other=0.0), tl.load(p1 + 1, inside, other=0.0)
    ax2, ay2 = tl.load(p1 + 2, inside, other=0.0), tl.load(p1 + 3, inside, other=0.0)
    bx1, by1 = tl.load(p2, inside, other=0.0), tl.load(p2 + 1, inside, other=0.0)
    bx2, by2 = tl.load(p2 + 2, inside, other=0.0), tl.load(p2 + 3, inside, other=0.0)
    width = tl.minimum(ax2, bx2) - tl.maximum(ax1, bx1)
    height = tl.minimum(ay2, by2) - tl.maximum(ay1, by1)
    if UNIVG_R1:  # an overlap counts where it is wider than one unit on both axes; areas are plain
        inter = tl.where((width > 1) & (height > 1), width * height, 0.0)
        union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - inter
    else:
        inter = _area(width, height)
        union = _area(ax2 - ax1, ay2 - ay1) + _area(bx2 - bx1, by2 - by1) - inter
    iou = tl.where(inter > 0, inter / union, 0.0)
    if GIOU:
        hull = _area(tl.maximum(ax2, bx2) - tl.minimum(ax1, bx1), tl.maximum(ay2, by2) - tl.minimum(ay1, by1))
        iou -= tl.where(hull > 0, (hull - union) / hull, 0.0)
    tl.store(out + i, iou, mask=inside)


def _empty(boxes1: Tensor, boxes2: Tensor, pairwise: bool) -> Tensor:
    return boxes1.new_empty((boxes1.shape[0], boxes2.shape[0]) if pairwise else boxes1.shape[0])


@torch.library.custom_op("univg_kernels::triton_box_iou", mutates_args=())
def triton_box_iou(boxes1: Tensor, boxes2: Tensor, pairwise: bool, giou: bool, univg_r1: bool) -> Tensor:
    out = _empty(boxes1, boxes2, pairwise)
    launch(
        box_iou_kernel, triton.cdiv(out.numel(), BLOCK), out, boxes1, boxes2, out, out.numel(),
        max(boxes2.shape[0], 1), PAIRWISE=pairwise, GIOU=giou, UNIVG_R1=univg_r1, BLOCK=BLOCK, num_warps=WARPS,
    )  # fmt: skip
    return out


@triton_box_iou.register_fake
def _(boxes1: Tensor, boxes2: Tensor, pairwise: bool, giou: bool, univg_r1: bool) -> Tensor:
    return _empty(boxes1, boxes2, pairwise)


def box_iou(boxes1: Tensor, boxes2: Tensor, mode: str, kind: str, convention: str) -> Tensor:
    flags = (mode == "pairwise", kind == "giou", convention == "univg_r1")
    return triton_box_iou(boxes1.contiguous(), boxes2.contiguous(), *flags)
