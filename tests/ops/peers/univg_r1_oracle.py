"""The loss of UniVG-R1's trainer, written out number by number: it is no package that could be installed.

Difficulty-aware GRPO as published: groups of G completions of one prompt, phi from the mean IoU of the group.
"""

from __future__ import annotations

import math
from statistics import mean, stdev

from torch import Tensor

from .problem import Problem


def factors(rewards: list[float], ious: list[float], group_size: int, weight: str, power: float) -> list[tuple]:
    """(advantage, phi) of each response."""
    found = []
    for first in range(0, len(rewards), group_size):
        members = rewards[first : first + group_size]
        miou = mean(ious[first : first + group_size])
        if weight == "exp":
            phi = math.exp(1 - miou)
        elif weight == "power":
            phi = (1.05 - miou) ** power
        else:
            phi = -math.log(0.02 + miou)
        found += [((r - mean(members)) / (stdev(members) + 1e-4), phi) for r in members]
    return found


def loss(
    problem: Problem,
    logp: Tensor,
    *,
    rewards: list[float],
    ious: list[float],
    group_size: int,
    epsilon: float,
    beta: float,
    weight: str,
    power: float = 1.0,
    on_policy: bool = False,
    empty: float = math.nan,
) -> Tensor:
    """Mean over responses of the mean over tokens of phi·(-min(r·A, clip(r)·A)) + beta·k3.

    empty: what a response without tokens counts; there 0/0.
    """
    each = []
    for i, (advantage, phi) in enumerate(factors(rewards, ious, group_size, weight, power)):
        terms = []
        for t in range(problem.lengths[i]):
            if not problem.mask[i, t]:
                continue
            now = logp[i, t]
            ratio = (now - (now.detach() if on_policy else problem.old[i, t])).exp()
            if ratio < 1 - epsilon:
                clipped = 1 - epsilon
            elif ratio > 1 + epsilon:
                clipped = 1 + epsilon
            else:
                clipped = ratio
            gain = ratio * advantage if ratio * advantage <= clipped * advantage else clipped * advantage
            term = -phi * gain
            if beta:
                ahead = problem.ref[i, t] - now
                term = term + beta * (ahead.exp() - ahead - 1)
            terms.append(term)
        each.append(sum(terms) / len(terms) if terms else logp.new_tensor(empty))
    return sum(each) / len(each)
