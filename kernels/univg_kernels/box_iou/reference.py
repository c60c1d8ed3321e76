"""Overlap of boxes: the specification."""

from __future__ import annotations

import torch
from torch import Tensor


def box_iou(boxes1: Tensor, boxes2: Tensor, mode: str, kind: str, convention: str) -> Tensor:
    if mode == "pairwise":
        boxes1, boxes2 = boxes1[:, None], boxes2[None, :]
    low = torch.maximum(boxes1[..., :2], boxes2[..., :2])
    high = torch.minimum(boxes1[..., 2:], boxes2[..., 2:])
    sides1, sides2 = boxes1[..., 2:] - boxes1[..., :2], boxes2[..., 2:] - boxes2[..., :2]
    if convention == "univg_r1":
        # The pixel rule of UniVG-R1: an overlap counts where it is wider than one unit on both axes; areas are plain.
        inter = torch.where((high - low > 1).all(-1), (high - low).prod(-1), 0.0)
        union = sides1.prod(-1) + sides2.prod(-1) - inter
    else:
        inter = (high - low).clamp(min=0).prod(-1)
        union = sides1.clamp(min=0).prod(-1) + sides2.clamp(min=0).prod(-1) - inter
    iou = torch.where(inter > 0, inter / union, 0.0)
    if kind == "iou":
        return iou
    hull_low = torch.minimum(boxes1[..., :2], boxes2[..., :2])
    hull_high = torch.maximum(boxes1[..., 2:], boxes2[..., 2:])
    hull = (hull_high - hull_low).clamp(min=0).prod(-1)
    return iou - torch.where(hull > 0, (hull - union) / hull, 0.0)
