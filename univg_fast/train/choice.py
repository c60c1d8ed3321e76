"""Which of the prompts drawn a step trains on, in which of its optimizer steps and on which rank; what these add up to.

Every rank decides for itself from the same facts of all ranks' groups, and so alike; what is chosen, and in what order,
depends on the prompts alone and not on the ranks that had them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from univg_fast.data.windows import cut

EVEN = 0.05  # more than the mean rank's work is not worth a move


class Facts(NamedTuple):
    """What other ranks need to know of a group."""

    place: Any  # in the order of drawing
    varied: bool  # whether it can teach: its rewards differ, and a response has a loss
    responses: int  # that a mean over responses counts
    tokens: int  # of those with a loss
    rewards: tuple[float, ...]
    phi: float
    cost: float  # of training on it, in tokens


class Move(NamedTuple):
    """A group that another rank trains on than the one that drew it."""

    source: int
    number: int  # of the source's groups
    target: int


@dataclass(frozen=True)
class Share:
    """One optimizer step's groups: this rank's, by number, and the counts of all ranks'."""

    groups: list[int]  # those that came from other ranks are numbered on from the rank's own, in the order of moves
    responses: float
    tokens: float


@dataclass(frozen=True)
class Choice:
    """The shares of a step's optimizer steps, and what all its groups say together."""

    shares: list[Share]
    chosen: set[int]  # of this rank's groups, those that any rank trains on
    moves: list[Move]  # of all ranks, in an order that is the same on all
    prompts: int  # trained on, of all ranks
    drawn: int  # of all ranks
    reward_std: float  # of all their rewards, ddof 1
    phi_mean: float


def enough(facts: Sequence[Sequence[Facts]], wanted: int) -> bool:
    """Whether all ranks' groups hold so many whose rewards differ."""
    return sum(fact.varied for mine in facts for fact in mine) >= wanted


def choose(facts: Sequence[Sequence[Facts]], rank: int, shares: int, wanted: int | None) -> Choice:
    """`facts`: of each rank, of each of its groups. `wanted`: the first so many whose rewards differ; None: all.

    Of the first so many only the rewards could tell which ranks have them: they are then evened out (`even_out`).
    """
    every = sorted((fact.place, at, number) for at, mine in enumerate(facts) for number, fact in enumerate(mine))
    if wanted is not None:
        every = [entry for entry in every if facts[entry[1]][entry[2]].varied][:wanted]
    chosen = [facts[at][number] for _, at, number in every]
    parts, moves = [[(at, number) for _, at, number in part] for part in cut(every, shares)], list[Move]()
    made, numbers = [], {(rank, number): number for number in range(len(facts[rank]))}
    for part in parts:
        costs = [facts[at][number].cost for at, number in part]
        targets = [at for at, _ in part] if wanted is None else even_out(costs, [at for at, _ in part], len(facts))
        for (at, number), target in zip(part, targets, strict=True):
            if target != at:
                moves.append(Move(at, number, target))
            if target == rank != at:
                numbers[at, number] = len(numbers)
        mine = sorted(numbers[entry] for entry, target in zip(part, targets, strict=True) if target == rank)
        found = [facts[at][number] for at, number in part]
        made.append(Share(mine, float(sum(f.responses for f in found)), float(sum(f.tokens for f in found))))
    rewards = np.array([reward for fact in chosen for reward in fact.rewards], np.float64)
    return Choice(
        made,
        {number for part in parts for at, number in part if at == rank},
        moves,
        prompts=len(every),
        drawn=sum(map(len, facts)),
        reward_std=float(rewards.std(ddof=1)) if len(rewards) > 1 else 0.0,
        phi_mean=float(np.mean([fact.phi for fact in chosen])) if chosen else 1.0,
    )


def even_out(costs: Sequence[float], holders: Sequence[int], ranks: int) -> list[int]:
    """Who is to have each item, so that no rank has much more than the mean, with few items changing hands.

    From the rank with most to the one with least goes what brings these two nearest to each other, again and again.
    """
    holders, loads = list(holders), [0.0] * ranks
    for cost, rank in zip(costs, holders, strict=True):
        loads[rank] += cost
    limit = (1 + EVEN) * sum(loads) / ranks
    while max(loads) > limit:
        most, least = loads.index(max(loads)), loads.index(min(loads))
        gap = loads[most] - loads[least]
        movable = [i for i, cost in enumerate(costs) if holders[i] == most and 0 < cost < gap]
        if not movable:
            break
        item = min(movable, key=lambda i: abs(costs[i] - gap / 2))
        holders[item] = least
        loads[most] -= costs[item]
        loads[least] += costs[item]
    return holders
