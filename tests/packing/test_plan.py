"""Every group once, within the budget where a group can be, few rows, even ranks; from sizes and a seed alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bench.packing import DRAWS, Draw, flattest, samples
from univg_fast.config import PackConfig
from univg_fast.packing.plan import (
    LOOK_AHEAD,
    PATCH,
    SEEN,
    GroupSize,
    Part,
    best_fit,
    deal,
    fullest,
    pack,
    plan_rows,
    plan_window,
    split,
    spread,
)

Method = Callable[..., list[list[int]]]

LENGTHS = st.lists(st.integers(1, 300), max_size=60)
GROUPS = st.lists(
    st.builds(
        GroupSize,
        st.integers(1, 200),
        st.lists(st.integers(1, 90), min_size=1, max_size=16).map(tuple),
        st.integers(0, 900),
    ),
    max_size=25,
)
ONE = st.builds(GroupSize, st.integers(1, 200), st.integers(1, 90).map(lambda n: (n,)), st.integers(0, 900))
BUDGET = st.integers(50, 400)


def tokens(row: list[Part]) -> int:
    return sum(part.size.tokens for part in row)


@settings(deadline=None)
@given(LENGTHS, BUDGET, st.integers(1, 6) | st.none())
@pytest.mark.parametrize("method", [pack, fullest, best_fit])
def test_every_length_once_and_within_the_budget(method: Method, lengths: list[int], budget: int, most: Any) -> None:
    rows = method(lengths, budget, most)
    assert rows == method(list(lengths), budget, most)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    for row in rows:
        assert len(row) == 1 or sum(lengths[i] for i in row) <= budget
        assert most is None or len(row) <= most
    for one, other in combinations(rows, 2) if most is None and len(lengths) <= LOOK_AHEAD else ():
        assert sum(lengths[i] for i in (*one, *other)) > budget, "two rows that fit into one"
    assert len(pack(lengths, budget, most)) <= len(rows)


@settings(deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=12), st.integers(50, 100))
def test_the_first_row_is_as_full_as_any_could_be(lengths: list[int], budget: int) -> None:
    row = fullest(lengths, budget)[0]
    subsets = (rest for k in range(len(lengths)) for rest in combinations(lengths[1:], k))
    best = max((total for rest in subsets if (total := lengths[0] + sum(rest)) <= budget), default=lengths[0])
    assert row[0] == 0 and sum(lengths[i] for i in row) == best


def test_best_fit_decreasing_chooses_the_fullest_row() -> None:
    lengths = [
        70,
        60,
        35,
        5,
    ]  # the 35 into the 60's row, which is then the fuller one; first-fit gives the 5 to the 70's
    assert best_fit(lengths, 100) == [[0], [1, 2, 3]]


@settings(deadline=None)
@given(GROUPS, BUDGET)
def test_a_group_too_large_for_a_row_is_split_by_its_responses(groups: list[GroupSize], budget: int) -> None:
    rows = plan_rows(groups, budget)
    held = sorted((part.group, j) for row in rows for part in row for j in part.responses)
    assert held == [(i, j) for i, group in enumerate(groups) for j in range(len(group.responses))]
    for row in rows:
        assert len({part.group for part in row}) == len(row), "a prompt twice in a row"
        for part in row:
            group = groups[part.group]
            assert part.size == GroupSize(
                group.prompt, tuple(group.responses[j] for j in part.responses), group.patches
            )
            assert group.tokens > budget or len(part.responses) == len(group.responses), "split without need"
        if tokens(row) > budget:  # only what no split can help: the prompt with its longest response
            (part,) = row
            group = groups[part.group]
            assert group.prompt + max(group.responses) > budget
            assert tokens(row) <= group.prompt + max(*group.responses, budget // 4, group.prompt // 4)


def test_a_split_makes_few_parts() -> None:
    parts = split(3, GroupSize(100, (50,) * 8), 300)
    assert [len(part.responses) for part in parts] == [4, 4] and all(part.group == 3 for part in parts)
    # none fits, so that the budget is passed anyway: few copies of the prompt, and no row much longer than it
    assert [part.size.tokens for part in split(0, GroupSize(290, (50,) * 8), 300)] == [340] * 8
    for prompt in (16250, 16384, 16500, 25000):
        assert len(split(0, GroupSize(prompt, (200,) * 8), 16384)) == 1
    parts = split(0, GroupSize(16250, (1500,) * 8), 16384)
    assert [part.size.tokens for part in parts] == [16250 + 3000] * 4
    assert len(split(0, GroupSize(290, ()), 100)) == 1  # a prompt without responses is not lost


@settings(deadline=None)
@given(st.lists(ONE, max_size=60), st.integers(1, 8), BUDGET, st.integers(0, 99))
def test_a_window_deals_every_sample_to_a_step(groups: list[GroupSize], steps: int, budget: int, seed: int) -> None:
    planned = plan_window(groups, steps, budget, [seed, 1])
    assert planned == plan_window(list(groups), steps, budget, [seed, 1])
    assert len(planned) == steps
    assert sorted(i for step in planned for row in step for i in row) == list(range(len(groups)))
    for row in (row for step in planned for row in step):
        assert len(row) == 1 or sum(groups[i].tokens for i in row) <= budget
    if len(groups) >= steps:
        assert all(planned), "a step without rows"
        counts = [sum(map(len, step)) for step in planned]
        largest, mean = max(len(row) for step in planned for row in step), len(groups) / steps
        assert max(counts) - min(counts) <= max(1, largest)
        assert all(abs(count - mean) <= max(1, mean / 3) for count in counts)


def test_a_step_that_fits_into_a_row_takes_its_own_share() -> None:
    groups = [GroupSize(10, (5,))] * 12
    assert plan_window(groups, 3, 1000, [0, 0]) == [[[0, 1, 2, 3]], [[4, 5, 6, 7]], [[8, 9, 10, 11]]]


def test_a_window_depends_on_its_seed() -> None:
    rng = np.random.default_rng(0)
    groups = [GroupSize(int(n), (20,)) for n in rng.integers(50, 200, 64)]
    plans = [plan_window(groups, 8, 400, [seed, window]) for seed in (0, 1) for window in (0, 1)]
    assert all(one != other for one, other in combinations(plans, 2))


@settings(deadline=None)
@given(st.lists(st.floats(1, 1000), max_size=40), st.integers(1, 9))
def test_hands_are_even(costs: list[float], hands: int) -> None:
    dealt = deal(costs, hands)
    assert sorted(i for hand in dealt for i in hand) == list(range(len(costs)))
    counts = [len(hand) for hand in dealt]
    assert max(counts) == -(-len(costs) // hands) and (min(counts) > 0 or len(costs) < hands)
    if costs:
        loads = [sum(costs[i] for i in hand) for hand in dealt]
        assert max(loads) <= sum(costs) / hands + max(costs) + 1e-6


@settings(deadline=None)
@given(st.lists(ONE, min_size=1, max_size=40), st.integers(1, 9), BUDGET)
def test_rows_spread_over_ranks(groups: list[GroupSize], ranks: int, budget: int) -> None:
    rows = pack([group.tokens for group in groups], budget)
    shares = spread(rows, groups, ranks, budget)
    assert shares == spread([list(row) for row in rows], list(groups), ranks, budget)
    assert sorted(i for share in shares for row in share for i in row) == list(range(len(groups)))
    assert all(len(row) == 1 or sum(groups[i].tokens for i in row) <= budget for share in shares for row in share)
    loads = [sum(groups[i].cost for row in share for i in row) for share in shares]
    dearest = max(sum(groups[i].cost for i in row) for share in shares for row in share)
    assert max(loads) <= sum(loads) / ranks + dearest + 1e-6
    if len(groups) >= ranks:
        assert all(shares), "a rank without work"


def test_ranks_of_a_usual_step_wait_little() -> None:
    """24 samples of 1 to 6 images: on 2, 4 and 8 ranks nobody waits long, and nobody has a row more."""
    rng = np.random.default_rng(1)
    for _ in range(20):
        images = rng.integers(1, 7, 24)
        groups = [GroupSize(int(391 * n + 150), (150,), int(1564 * n)) for n in images]
        rows = pack([group.tokens for group in groups], 16384)
        for ranks, bound in ((2, 1.03), (4, 1.08), (8, 1.35)):
            shares = spread(rows, groups, ranks, 16384)
            assert len({len(share) for share in shares}) == 1
            loads = [sum(groups[i].cost for row in share for i in row) for share in shares]
            assert max(loads) <= bound * sum(loads) / ranks


@pytest.mark.parametrize("patch", [SEEN, 0.0])
def test_texts_beside_images_are_dealt_by_what_a_frozen_tower_costs(patch: float) -> None:
    """A third has no images: with a trained tower's cost of a patch ranks wait more than twice as long."""
    rng, waits = np.random.default_rng(1), {patch: 0.0, PATCH: 0.0}
    for _ in range(20):
        images = [int(n) * 391 for n in rng.integers(2, 7, 16)] + [0] * 8
        texts = [*rng.integers(80, 400, 16).tolist(), *rng.integers(500, 3000, 8).tolist()]
        groups = [GroupSize(n + text, (200,), 4 * n, patch=patch) for n, text in zip(images, texts, strict=True)]
        rows = pack([group.tokens for group in groups], 16384)
        for planned in waits:
            shares = spread(rows, [replace(group, patch=planned) for group in groups], 4, 16384)
            loads = [sum(groups[i].cost for row in share for i in row) for share in shares]
            waits[planned] += max(loads) / (sum(loads) / 4) - 1
    assert waits[patch] < waits[PATCH] / 2 and waits[patch] / 20 < 0.03


@settings(deadline=None)
@given(GROUPS.filter(bool), st.integers(1, 4))
def test_cost_is_that_of_its_parts(groups: list[GroupSize], extra: int) -> None:
    """Tokens, pairs and patches each make a group dearer, and a split one pays for its prompt again."""
    group = groups[0]
    assert GroupSize(group.prompt + extra, group.responses, group.patches).cost > group.cost
    assert GroupSize(group.prompt, group.responses, group.patches + extra).cost > group.cost
    mask = np.tril(np.ones((group.prompt + sum(group.responses),) * 2, bool))
    start = group.prompt
    for n in group.responses:  # a response does not see the ones before it
        mask[start : start + n, group.prompt : start] = False
        start += n
    assert group.pairs == mask.sum()
    assume(len(group.responses) > 1)
    parts = split(0, group, group.tokens - 1)
    assert sum(part.size.prompt for part in parts) == len(parts) * group.prompt


@pytest.mark.parametrize("draw", DRAWS, ids=lambda draw: draw.name)
def test_rows_of_a_window_are_full_for_the_benchmarks_images(draw: Draw) -> None:
    """MIG-Bench's numbers of images; 21 steps of 24 samples, the whole steps of the default window."""
    pack_config = PackConfig()
    assert pack_config.window == 512
    random = np.random.default_rng(7)
    found = samples(draw, random)
    assert np.mean([size.patches for size in samples(DRAWS[0], random)]) / 2048 == pytest.approx(3.777, abs=0.02)
    for seed in range(5):
        sizes = [found[i] for i in random.permutation(len(found))[:504]]
        steps = plan_window(sizes, 21, pack_config.budget_tokens, [seed, 0])
        rows = sum(len(step) for step in steps)
        assert sum(size.tokens for size in sizes) >= 0.97 * rows * pack_config.budget_tokens
        assert all(16 <= sum(map(len, step)) <= 32 for step in steps)


@pytest.mark.parametrize("share", [0.95, 0.98, 1.0, 1.03, 1.3])
def test_rows_are_full_where_a_step_is_about_a_row(share: float) -> None:
    """The mean step fits into a row, but half of the steps do not. Where it does not, by little, a step of one full row
    would stand beside one of two; steps are then even, and rows less full."""
    random = np.random.default_rng(3)
    found = samples(DRAWS[0], random)
    sizes = [found[i] for i in random.permutation(len(found))[:504]]
    budget = int(sum(size.tokens for size in sizes) / 21 / share)
    steps = plan_window(sizes, 21, budget, [0, 0])
    assert share > 1 or sum(size.tokens for size in sizes) >= 0.9 * sum(map(len, steps)) * budget
    assert all(16 <= sum(map(len, step)) <= 32 for step in steps)


@pytest.mark.parametrize(("low", "high", "mean"), [(2, 2, 2.0), (3, 5, 4.19), (2, 6, 4.0)])
def test_the_assumed_distribution_has_the_known_mean(low: int, high: int, mean: float) -> None:
    values, chances = flattest(low, high, mean)
    assert (values[0], values[-1]) == (low, high)
    assert chances.sum() == pytest.approx(1) and (values * chances).sum() == pytest.approx(mean)
