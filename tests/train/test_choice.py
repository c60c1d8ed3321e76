"""Which prompts a step trains on, and on which rank: pure functions of facts that all ranks know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from univg_fast.train.choice import Choice, Facts, choose, enough, even_out
from univg_fast.train.scoring import Place


def random_facts(rng: np.random.Generator, count: int) -> list[Facts]:
    """Of prompts drawn in batches of 8; half of them with equal rewards."""
    return [
        Facts(Place(k // 8, int(rng.integers(1 << 32)), str(k)), bool(rng.integers(2)), 3, int(rng.integers(1, 40)),
              tuple(rng.random(3)), float(rng.random()), float(rng.uniform(0.7, 1.3)))
        for k in range(count)
    ]  # fmt: skip


@pytest.mark.parametrize("wanted", [None, 5, 100])
def test_the_choice_hangs_on_no_rank(wanted: int | None) -> None:
    rng = np.random.default_rng(1)
    facts = random_facts(rng, 24)
    alone = choose([facts], 0, 3, wanted)
    picked = [[facts[i].place for i in share.groups] for share in alone.shares]
    for ranks in (2, 3, 7):
        held = [[facts[i] for i in rng.permutation(24) if i % ranks == rank] for rank in range(ranks)]
        shared = [choose(held, rank, 3, wanted) for rank in range(ranks)]
        for k in range(3):
            places = [taken_by(r, held, choice)[i].place for r, choice in enumerate(shared) for i in of(choice, k)]
            assert sorted(places) == sorted(picked[k])
        chosen = [held[r][i].place for r, choice in enumerate(shared) for i in choice.chosen]
        assert sorted(chosen) == sorted(place for share in picked for place in share)
        for choice in shared:
            assert [(s.responses, s.tokens) for s in choice.shares] == [(s.responses, s.tokens) for s in alone.shares]
            assert choice.reward_std == pytest.approx(alone.reward_std, abs=1e-12)
            assert choice.phi_mean == pytest.approx(alone.phi_mean) and choice.prompts == alone.prompts


def of(choice: Choice, share: int) -> list[int]:
    return choice.shares[share].groups


def taken_by(rank: int, held: Sequence[Sequence[Facts]], choice: Choice) -> list[Facts]:
    """A rank's groups, and behind them those that come to it."""
    return [*held[rank], *(held[m.source][m.number] for m in choice.moves if m.target == rank)]


@pytest.mark.parametrize("shares", [1, 4])
def test_ranks_have_like_shares_of_what_is_drawn_anew(shares: int) -> None:
    """Of 64 groups of 8 ranks, about half of what they drew; few change ranks, none where all are kept."""
    facts = random_facts(np.random.default_rng(3), 128)
    held = [facts[rank::8] for rank in range(8)]
    assert all(choose(held, 0, shares, wanted).moves == [] for wanted in (None, 0))
    choices = [choose(held, rank, shares, 64) for rank in range(8)]
    for k in range(shares):
        costs = [sum(taken_by(r, held, c)[i].cost for i in of(c, k)) for r, c in enumerate(choices)]
        drawn = [sum(f.cost for f in mine if f.place in places(held, choices, k)) for mine in held]
        assert max(costs) < 1.25 * np.mean(costs) < max(drawn) and sum(costs) == pytest.approx(sum(drawn))
    assert all(c.moves == choices[0].moves for c in choices) and 0 < len(choices[0].moves) < 64 / 3


def places(held: Sequence[Sequence[Facts]], choices: Sequence[Choice], share: int) -> list[Any]:
    return [taken_by(r, held, c)[i].place for r, c in enumerate(choices) for i in of(c, share)]


@pytest.mark.parametrize("ranks", [1, 2, 5])
def test_evening_out_ends_and_makes_nothing_worse(ranks: int) -> None:
    rng = np.random.default_rng(4)
    for count in (0, 1, 3, 20):
        for _ in range(50):
            costs = rng.choice([0.0, 1.0, 1.5, 40.0], count).tolist()
            before = rng.integers(0, ranks, count).tolist()
            after = even_out(costs, before, ranks)
            most = [max([0.0, *np.bincount(who, costs, ranks)]) if count else 0.0 for who in (before, after)]
            assert most[1] <= most[0] and len(after) == count
            assert even_out(costs, after, ranks) == after


def test_the_first_varied_prompts_drawn_are_taken() -> None:
    facts = random_facts(np.random.default_rng(2), 24)
    varied = sum(fact.varied for fact in facts)
    assert enough([facts[:12], facts[12:]], varied) and not enough([facts], varied + 1)
    choice = choose([facts], 0, 1, 5)
    taken = [facts[i] for i in choice.shares[0].groups]
    left = [fact for fact in facts if fact.varied and fact not in taken]
    assert len(taken) == 5 == choice.prompts and choice.drawn == 24
    assert all(fact.varied for fact in taken) and max(f.place for f in taken) < min(f.place for f in left)
    assert choose([facts], 0, 1, 100).prompts == varied
    whole = choose([[replace_varied(f) for f in facts]], 0, 2, 5)
    assert whole.prompts == 0 and [s.tokens for s in whole.shares] == [0, 0] and np.isfinite(whole.reward_std)


def replace_varied(fact: Facts) -> Facts:
    return fact._replace(varied=False)
