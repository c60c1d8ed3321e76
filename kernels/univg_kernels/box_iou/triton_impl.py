"""Triton face of `box_iou`: one lane per pair, in fp64. The formulas are those of csrc/box_overlap.h."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from .._triton.launch import launch
from .pairs import Offsets, ragged_pairs
from .reference import LARGEST as LARGEST_COORDINATE

BLOCK = 512
WARPS = 4
LARGEST = tl.constexpr(LARGEST_COORDINATE)


@triton.jit
def _area(width, height):
    return tl.maximum(width, 0.0) * tl.maximum(height, 0.0)


@triton.jit
def _coordinate(boxes, inside):
    """As fp64, and whether it is a number that an area can be made of."""
    x = tl.load(boxes, inside, other=0.0).to(tl.float64)
    return x, tl.abs(x) <= LARGEST


@triton.jit
def _load(boxes, inside):
    """The four coordinates, and whether all of them are known."""
    x1, known1 = _coordinate(boxes, inside)
    y1, known2 = _coordinate(boxes + 1, inside)
    x2, known3 = _coordinate(boxes + 2, inside)
    y2, known4 = _coordinate(boxes + 3, inside)
    return x1, y1, x2, y2, known1 & known2 & known3 & known4


@triton.jit
def _overlap(ax1, ay1, ax2, ay2, bx1, by1, bx2, by2, known, UNIVG_R1: tl.constexpr):
    """(whether the overlap counts, its sides, the area of the union, IoU)."""
    width = tl.minimum(ax2, bx2) - tl.maximum(ax1, bx1)
    height = tl.minimum(ay2, by2) - tl.maximum(ay1, by1)
    if UNIVG_R1:  # an overlap counts where it is wider than one unit on both axes; areas are plain
        counts = known & (width > 1) & (height > 1)
        both = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1)
    else:
        counts = known & (width > 0) & (height > 0)
        both = _area(ax2 - ax1, ay2 - ay1) + _area(bx2 - bx1, by2 - by1)
    inter = tl.where(counts, width * height, 0.0)
    union = both - inter
    counts = counts & (inter > 0)
    return counts, width, height, union, tl.where(counts, inter / union, 0.0)


@triton.jit
def _share(loser, winner):
    """1 where the winner's edge is the one that is taken, a half where both are."""
    return tl.where(loser < winner, 1.0, tl.where(loser == winner, 0.5, 0.0))


@triton.jit
def _gradient(out, inside, upstream, ax1, ay1, ax2, ay2, bx1, by1, bx2, by2, known, GIOU: tl.constexpr,
              UNIVG_R1: tl.constexpr):  # fmt: skip
    """By the box a."""
    counts, width, height, union, iou = _overlap(ax1, ay1, ax2, ay2, bx1, by1, bx2, by2, known, UNIVG_R1)
    by_inter, by_area = tl.where(counts, (1 + iou) / union, 0.0), tl.where(counts, -iou / union, 0.0)
    side_x, side_y = ax2 - ax1, ay2 - ay1
    if GIOU:
        hull_x = tl.maximum(tl.maximum(ax2, bx2) - tl.minimum(ax1, bx1), 0.0)
        hull_y = tl.maximum(tl.maximum(ay2, by2) - tl.minimum(ay1, by1), 0.0)
        some = known & (hull_x * hull_y > 0)
        inverse = tl.where(some, 1.0 / (hull_x * hull_y), 0.0)
        by_inter = tl.where(counts, by_inter - inverse, 0.0)
        by_area += inverse
        by_hull = tl.where(some, -(union * inverse) * inverse, 0.0)
    area_x, area_y = by_area * side_y, by_area * side_x
    if not UNIVG_R1:  # an empty side may grow; an inverted one does not know that it should
        area_x = tl.where(side_x >= 0, by_area * tl.maximum(side_y, 0.0), 0.0)
        area_y = tl.where(side_y >= 0, by_area * tl.maximum(side_x, 0.0), 0.0)
    x1, x2 = by_inter * height * _share(bx1, ax1) + area_x, by_inter * height * _share(ax2, bx2) + area_x
    y1, y2 = by_inter * width * _share(by1, ay1) + area_y, by_inter * width * _share(ay2, by2) + area_y
    if GIOU:
        x1 += by_hull * hull_y * _share(ax1, bx1)
        x2 += by_hull * hull_y * _share(bx2, ax2)
        y1 += by_hull * hull_x * _share(ay1, by1)
        y2 += by_hull * hull_x * _share(by2, ay2)
    tl.store(out, tl.where(known, -x1 * upstream, 0.0), mask=inside)
    tl.store(out + 1, tl.where(known, -y1 * upstream, 0.0), mask=inside)
    tl.store(out + 2, tl.where(known, x2 * upstream, 0.0), mask=inside)
    tl.store(out + 3, tl.where(known, y2 * upstream, 0.0), mask=inside)


@triton.jit(do_not_specialize=["pairs", "columns"])
def box_iou_kernel(boxes1, boxes2, out, pairs, columns, PAIRWISE: tl.constexpr, GIOU: tl.constexpr,
                   UNIVG_R1: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Pair i is (i, i), or (i // columns, i % columns) if PAIRWISE."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < pairs
    ax1, ay1, ax2, ay2, known1 = _load(boxes1 + (i // columns if PAIRWISE else i) * 4, inside)
    bx1, by1, bx2, by2, known2 = _load(boxes2 + (i % columns if PAIRWISE else i) * 4, inside)
    known = known1 & known2
    counts, width, height, union, iou = _overlap(ax1, ay1, ax2, ay2, bx1, by1, bx2, by2, known, UNIVG_R1)
    if GIOU:
        hull = _area(tl.maximum(ax2, bx2) - tl.minimum(ax1, bx1), tl.maximum(ay2, by2) - tl.minimum(ay1, by1))
        iou -= tl.where(known & (hull > 0), (hull - union) / hull, 0.0)
    tl.store(out + i, iou, mask=inside)


@triton.jit(do_not_specialize=["pairs", "columns"])
def box_iou_backward_kernel(upstream, boxes1, boxes2, out1, out2, pairs, columns, PAIRWISE: tl.constexpr,
                            GIOU: tl.constexpr, UNIVG_R1: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Gradients [pairs, 4] of each pair by its two boxes: IoU is symmetric, so the second is the first, swapped."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < pairs
    ax1, ay1, ax2, ay2, known1 = _load(boxes1 + (i // columns if PAIRWISE else i) * 4, inside)
    bx1, by1, bx2, by2, known2 = _load(boxes2 + (i % columns if PAIRWISE else i) * 4, inside)
    up = tl.load(upstream + i, inside, other=0.0).to(tl.float64)
    known = known1 & known2
    _gradient(out1 + i * 4, inside, up, ax1, ay1, ax2, ay2, bx1, by1, bx2, by2, known, GIOU, UNIVG_R1)
    _gradient(out2 + i * 4, inside, up, bx1, by1, bx2, by2, ax1, ay1, ax2, ay2, known, GIOU, UNIVG_R1)


def _empty(boxes1: Tensor, boxes2: Tensor, pairwise: bool, *last: int) -> Tensor:
    rows = (boxes1.shape[0], boxes2.shape[0]) if pairwise else (boxes1.shape[0],)
    return boxes1.new_empty((*rows, *last))


def _launch(kernel: Any, tensors: tuple[Tensor, ...], pairs: int, columns: int, *flags: bool) -> None:
    names = dict(zip(("PAIRWISE", "GIOU", "UNIVG_R1"), flags, strict=True))
    programs = triton.cdiv(pairs, BLOCK)
    launch(kernel, programs, tensors[0], *tensors, pairs, max(columns, 1), **names, BLOCK=BLOCK, num_warps=WARPS)


@torch.library.custom_op("univg_kernels::triton_box_iou", mutates_args=())
def triton_box_iou(boxes1: Tensor, boxes2: Tensor, pairwise: bool, giou: bool, univg_r1: bool) -> Tensor:
    out = _empty(boxes1, boxes2, pairwise)
    _launch(box_iou_kernel, (boxes1, boxes2, out), out.numel(), boxes2.shape[0], pairwise, giou, univg_r1)
    return out


@triton_box_iou.register_fake
def _(boxes1: Tensor, boxes2: Tensor, pairwise: bool, giou: bool, univg_r1: bool) -> Tensor:
    return _empty(boxes1, boxes2, pairwise)


def pair_gradients(grad: Tensor, boxes1: Tensor, boxes2: Tensor, *flags: bool) -> tuple[Tensor, Tensor]:
    """[pairs, 4] each, with [n, m, 4] for pairwise ones."""
    one, two = (_empty(boxes1, boxes2, flags[0], 4) for _ in range(2))
    tensors = (grad.contiguous(), boxes1, boxes2, one, two)
    _launch(box_iou_backward_kernel, tensors, grad.numel(), boxes2.shape[0], *flags)
    return one, two


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])
    ctx.flags = inputs[2:]


@once_differentiable
def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    one, two = pair_gradients(grad, *ctx.saved_tensors, *ctx.flags)
    if ctx.flags[0]:
        one, two = one.sum(1), two.sum(0)
    return one, two, None, None, None


triton_box_iou.register_autograd(_backward, setup_context=_setup_context)


def box_iou(boxes1: Tensor, boxes2: Tensor, offsets: Offsets | None, mode: str, kind: str, convention: str) -> Tensor:
    if offsets is not None:  # the boxes of each pair, side by side; autograd adds up what belongs to one box
        first, second = ragged_pairs(offsets)
        boxes1, boxes2 = boxes1[first], boxes2[second]
    flags = (mode == "pairwise", kind == "giou", convention == "univg_r1")
    return triton_box_iou(boxes1.contiguous(), boxes2.contiguous(), *flags)
