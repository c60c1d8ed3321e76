"""Which groups share a row: best-fit decreasing over the groups of one step, deterministic from the lengths alone."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence


def plan_rows(lengths: Sequence[int], budget_tokens: int) -> list[list[int]]:
    """Pack group lengths (tokens) into rows of at most `budget_tokens`; returns the group indices of each row.

    A group is never split: one that alone exceeds the budget gets a row of its own. Best-fit decreasing puts each
    group into the fullest row that still has room (at most 11/9 of the optimal number of rows).
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, row), sorted: the first that fits is the fullest
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        at = bisect_left(room, (lengths[index], -1))
        if at == len(room):
            rows.append([index])
            insort(room, (budget_tokens - lengths[index], len(rows) - 1))
        else:
            left, row = room.pop(at)
            rows[row].append(index)
            insort(room, (left - lengths[index], row))
    return [sorted(row) for row in rows]
