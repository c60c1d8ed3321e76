"""The matching of largest total IoU: the specification."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..box_iou import reference as overlap


def matched_iou(
    boxes1: Tensor, boxes2: Tensor, first: Tensor, second: Tensor, images: tuple[Tensor, Tensor] | None, convention: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    partner = torch.full((boxes1.shape[0],), -1)
    iou = torch.zeros(boxes1.shape[0], dtype=torch.float64)
    totals, matches = [], []
    starts, ends = (first.tolist(), second.tolist()), (first[1:].tolist(), second[1:].tolist())
    for at1, at2, end1, end2 in zip(*starts, *ends, strict=False):
        table = overlap.box_iou(boxes1[at1:end1], boxes2[at2:end2], None, "pairwise", "iou", convention)
        if images is not None:
            one, two = images[0][at1:end1, None], images[1][None, at2:end2]
            table = torch.where((one == two) | (one < 0) | (two < 0), table, 0.0)
        pairs = [(i, j) for i, j in assign(table.tolist()) if table[i, j] > 0]
        for i, j in pairs:
            partner[at1 + i], iou[at1 + i] = at2 + j, table[i, j]
        totals.append(iou[at1:end1].sum())
        matches.append(len(pairs))
    total = torch.stack(totals) if totals else torch.zeros(0, dtype=torch.float64)
    return total, torch.tensor(matches, dtype=torch.int64), partner, iou


def assign(gain: list[list[float]]) -> list[tuple[int, int]]:
    """The (row, column) pairs of largest total gain, min(rows, columns) of them. Each new row goes along the shortest
    augmenting path; prices keep all reduced costs at 0 or more."""
    if len(gain) > len(gain[0]) if gain else False:
        return [(i, j) for j, i in assign([list(column) for column in zip(*gain, strict=True)])]
    columns = len(gain[0]) if gain else 0
    row_price, column_price = [0.0] * len(gain), [0.0] * columns
    owner: list[int | None] = [None] * columns
    for new in range(len(gain) if columns else 0):
        distance, before = [math.inf] * columns, [-1] * columns
        seen: list[int] = []  # columns, in the order of their distance
        row: int | None = new
        while row is not None:
            reached = distance[seen[-1]] if seen else 0.0
            for j in range(columns):
                if j not in seen:
                    length = reached - gain[row][j] - row_price[row] - column_price[j]
                    if length < distance[j]:
                        distance[j], before[j] = length, seen[-1] if seen else -1
            nearest = min((j for j in range(columns) if j not in seen), key=distance.__getitem__)
            seen.append(nearest)
            row = owner[nearest]
        end = distance[seen[-1]]
        row_price[new] += end
        for j in seen[:-1]:
            row_price[owner[j] or 0] += end - distance[j]
            column_price[j] -= end - distance[j]
        j = seen[-1]
        while j >= 0:
            owner[j] = owner[before[j]] if before[j] >= 0 else new
            j = before[j]
    return [(row, j) for j, row in enumerate(owner) if row is not None]
