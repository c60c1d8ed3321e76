"""Boxes to try `box_iou` and `matched_iou` with, their overlap in rational numbers, and gradients."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import Any

import torch
import univg_kernels as uk
from torch import Tensor

BACKENDS = ["reference", "cpp"]
KINDS = [("iou", "continuous"), ("giou", "continuous"), ("iou", "univg_r1")]
Box = tuple[Fraction, ...]
NAN, INFINITY = float("nan"), float("inf")
NOTHING = [
    [NAN, 0, 4, 4], [0, NAN, 4, 4], [0, 0, NAN, 4], [0, 0, 4, NAN], [-INFINITY, 0, INFINITY, 4], [0, 0, INFINITY, 4],
]  # fmt: skip


def exact(a: Box, b: Box, kind: str, convention: str) -> Fraction:
    """The overlap in rational numbers, with the reward's rule as it is written down: edges shifted by 1 and back."""
    none = Fraction(0)
    if convention == "univg_r1":
        low, high = [max(a[i], b[i]) for i in (0, 1)], [min(a[i] - 1, b[i] - 1) for i in (2, 3)]
        some = all(p < q for p, q in zip(low, high, strict=True))
        inter = math.prod(q - p + 1 for p, q in zip(low, high, strict=True)) if some else none
        areas = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
        return inter / (sum(areas) - inter) if inter else none

    def area(x1: Fraction, y1: Fraction, x2: Fraction, y2: Fraction) -> Fraction:
        return max(x2 - x1, none) * max(y2 - y1, none)

    inter = area(*(max(a[i], b[i]) for i in (0, 1)), *(min(a[i], b[i]) for i in (2, 3)))
    union = area(*a) + area(*b) - inter
    iou = inter / union if union else none
    hull = area(*(min(a[i], b[i]) for i in (0, 1)), *(max(a[i], b[i]) for i in (2, 3)))
    return iou if kind == "iou" or not hull else iou - (hull - union) / hull


def draw(n: int, seed: int, dtype: torch.dtype = torch.float32, high: int = 1000) -> Tensor:
    """Proper, empty and inverted boxes, whole numbers and eighths among them."""
    g = torch.Generator().manual_seed(seed)
    boxes = torch.randint(0, high + 1, (n, 4), generator=g).to(dtype)
    boxes[::2] = torch.cat([boxes[::2, :2].minimum(boxes[::2, 2:]), boxes[::2, :2].maximum(boxes[::2, 2:])], 1)
    boxes[1::4] += torch.randint(0, 8, boxes[1::4].shape, generator=g) / 8
    return boxes


def rational(boxes: Tensor) -> list[Box]:
    return [tuple(Fraction(x) for x in box) for box in boxes.tolist()]


SIZES = ([3, 0, 1, 5, 2, 0], [2, 4, 0, 7, 1, 0])


def ragged(seed: int, dtype: torch.dtype = torch.float64, high: int = 20) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    cu1, cu2 = (torch.tensor([0, *itertools.accumulate(sizes)]) for sizes in SIZES)
    a, b = draw(int(cu1[-1]), seed, dtype, high), draw(int(cu2[-1]), seed + 1, dtype, high)
    return a, b, dict(offsets1=cu1, offsets2=cu2)


def gradients(a: Tensor, b: Tensor, backend: str, **options: Any) -> tuple[Tensor, ...]:
    leaves = (a.clone().requires_grad_(), b.clone().requires_grad_())
    out = uk.box_iou(*leaves, backend=backend, **options)
    weights = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view(out.shape)
    return torch.autograd.grad(out, leaves, weights)
