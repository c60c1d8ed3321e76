"""Groups that go from the rank that drew them to the one that trains on them, so that no rank waits for another."""

from __future__ import annotations

from dataclasses import replace

import torch

from univg_fast import distributed
from univg_fast.model import ImageFeatures
from univg_fast.rewards import Scores
from univg_fast.train.choice import Choice
from univg_fast.train.scoring import Scored, concatenated


def move(scored: Scored, choice: Choice, device: torch.device | None) -> Scored:
    """This rank's groups and, behind them, those that come from other ranks, as `Share.groups` numbers them.

    Collective where `choice` has moves: each is a message between two hosts. Those that leave stay here, too.
    `device`: of image features; None where there are none.
    """
    me, received = distributed.rank(), []
    for source, number, target in choice.moves:  # the same order on all ranks: none waits for one that waits for it
        if me == source:
            distributed.send_object(_only(scored, number), target)
        elif me == target:
            received.append(_on(distributed.receive_object(source), device))
    return concatenated([scored, *received])


def _only(scored: Scored, number: int) -> Scored:
    """One of its groups, on the host, in copies: a view would take all of its storage along."""
    count = len(scored.completions[number])
    first, one = number * count, slice(number, number + 1)
    its = slice(first, first + count)
    scores = scored.scores
    part = Scored(
        samples=scored.samples[one],
        completions=scored.completions[one],
        features=None if scored.features is None else scored.features[one],
        scores=Scores(scores.total[its], {name: of[its] for name, of in scores.parts.items()}, scores.boxes[its]),
        advantages=scored.advantages[its].clone(),
        phi=scored.phi[its].clone(),
        miou=scored.miou[one].clone(),
        reward_std=scored.reward_std[one].clone(),
        bad=[],
    )
    return _on(part, torch.device("cpu"), copy=True)


def _on(scored: Scored, device: torch.device | None, copy: bool = False) -> Scored:
    """With its image features there; `copy`: also where they are there already."""
    if scored.features is None:
        return scored
    tensors = [[x.to(device, copy=copy) for x in (of.pooled, *of.levels)] for of in scored.features]
    return replace(scored, features=[ImageFeatures(pooled, tuple(levels)) for pooled, *levels in tensors])
