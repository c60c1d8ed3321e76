"""Which of the prompts drawn a step trains on, in which of its optimizer steps, and what these add up to.

Every rank decides for itself from the same facts of all ranks' groups, and so alike; what is chosen, and in what order,
depends on the prompts alone and not on the ranks that had them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from univg_fast.data.windows import cut


class Facts(NamedTuple):
    """What other ranks need to know of a group."""

    place: Any  # in the order of drawing
    varied: bool  # whether it can teach: its rewards differ, and a response has a loss
    responses: int  # that a mean over responses counts
    tokens: int  # of those with a loss
    rewards: tuple[float, ...]
    phi: float


@dataclass(frozen=True)
class Share:
    """One optimizer step's groups: this rank's, by number, and the counts of all ranks'."""

    groups: list[int]
    responses: float
    tokens: float


@dataclass(frozen=True)
class Choice:
    """The shares of a step's optimizer steps, and what all its groups say together."""

    shares: list[Share]
    prompts: int  # trained on, of all ranks
    drawn: int  # of all ranks
    reward_std: float  # of all their rewards, ddof 1
    phi_mean: float


def enough(facts: Sequence[Sequence[Facts]], wanted: int) -> bool:
    """Whether all ranks' groups hold so many whose rewards differ."""
    return sum(fact.varied for mine in facts for fact in mine) >= wanted


def choose(facts: Sequence[Sequence[Facts]], rank: int, shares: int, wanted: int | None) -> Choice:
    """`facts`: of each rank, of each of its groups. `wanted`: the first so many whose rewards differ; None: all."""
    every = sorted((fact.place, at, number) for at, mine in enumerate(facts) for number, fact in enumerate(mine))
    if wanted is not None:
        every = [entry for entry in every if facts[entry[1]][entry[2]].varied][:wanted]
    chosen = [facts[at][number] for _, at, number in every]
    rewards = np.array([reward for fact in chosen for reward in fact.rewards], np.float64)
    return Choice(
        [_share(entries, facts, rank) for entries in cut(every, shares)],
        prompts=len(every),
        drawn=sum(map(len, facts)),
        reward_std=float(rewards.std(ddof=1)) if len(rewards) > 1 else 0.0,
        phi_mean=float(np.mean([fact.phi for fact in chosen])) if chosen else 1.0,
    )


def _share(entries: Sequence[tuple[Any, int, int]], facts: Sequence[Sequence[Facts]], rank: int) -> Share:
    found = [facts[at][number] for _, at, number in entries]
    return Share(
        sorted(number for _, at, number in entries if at == rank),
        responses=float(sum(fact.responses for fact in found)),
        tokens=float(sum(fact.tokens for fact in found)),
    )
