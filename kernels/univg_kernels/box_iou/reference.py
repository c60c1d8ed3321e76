"""Overlap of boxes: the specification, gradients included."""

from __future__ import annotations

import torch
from torch import Tensor

from .pairs import Offsets, ragged_pairs

LARGEST = 2.0**510  # coordinates beyond it could overflow as areas


def box_iou(boxes1: Tensor, boxes2: Tensor, offsets: Offsets | None, mode: str, kind: str, convention: str) -> Tensor:
    """In fp64: of fp32 boxes, however large or small, no area overflows or vanishes there."""
    dtype, boxes1, boxes2 = boxes1.dtype, boxes1.double(), boxes2.double()
    if mode == "pairwise":
        boxes1, boxes2 = boxes1[:, None], boxes2[None, :]
    elif offsets is not None:
        first, second = ragged_pairs(offsets)
        boxes1, boxes2 = boxes1[first], boxes2[second]
    known = ((boxes1.abs() <= LARGEST) & (boxes2.abs() <= LARGEST)).all(-1, keepdim=True)
    boxes1, boxes2 = torch.where(known, boxes1, 0.0), torch.where(known, boxes2, 0.0)
    low = torch.maximum(boxes1[..., :2], boxes2[..., :2])
    high = torch.minimum(boxes1[..., 2:], boxes2[..., 2:])
    sides1, sides2 = boxes1[..., 2:] - boxes1[..., :2], boxes2[..., 2:] - boxes2[..., :2]
    # The pixel rule of UniVG-R1: an overlap counts where it is wider than one unit on both axes; areas are plain.
    margin = 1 if convention == "univg_r1" else 0
    inter = torch.where((high - low > margin).all(-1), _area(high - low), 0.0)
    if convention != "univg_r1":
        sides1, sides2 = sides1.clamp(min=0), sides2.clamp(min=0)
    union = _area(sides1) + _area(sides2) - inter
    iou = inter / torch.where(inter > 0, union, 1.0)
    if kind == "iou":
        return iou.to(dtype)
    hull_low = torch.minimum(boxes1[..., :2], boxes2[..., :2])
    hull_high = torch.maximum(boxes1[..., 2:], boxes2[..., 2:])
    hull = _area((hull_high - hull_low).clamp(min=0))
    return (iou - torch.where(hull > 0, (hull - union) / torch.where(hull > 0, hull, 1.0), 0.0)).to(dtype)


def _area(sides: Tensor) -> Tensor:
    return sides[..., 0] * sides[..., 1]
