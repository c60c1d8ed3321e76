"""Rows hold every group once, stay in budget where a group can, and are few."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from univg_fast.packing import plan_rows

LENGTHS = st.lists(st.integers(1, 300), max_size=60)


@given(LENGTHS, st.integers(50, 400))
def test_every_group_once_and_in_budget(lengths: list[int], budget: int) -> None:
    rows = plan_rows(lengths, budget)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    for row in rows:
        assert len(row) == 1 or sum(lengths[i] for i in row) <= budget
    fitting = [n for n in lengths if n <= budget]
    oversized = len(lengths) - len(fitting)
    assert len(rows) - oversized <= max(0, 2 * sum(fitting) // budget + 1)


@given(LENGTHS, st.integers(50, 400))
def test_same_lengths_give_the_same_plan(lengths: list[int], budget: int) -> None:
    assert plan_rows(lengths, budget) == plan_rows(list(lengths), budget)


def test_fill_on_many_samples() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(300, 3000, 512).tolist()
    rows = plan_rows(lengths, 16384)
    assert sum(lengths) / (len(rows) * 16384) >= 0.97
