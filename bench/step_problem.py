"""The problem of `bench.step`: prompts with images, their responses, and a policy a step away from its reference."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from univg_kernels import GrpoConfig

from univg_fast.model import PackedModel
from univg_fast.structs import Group

from .rollout import SIZES, Size, make_model, make_samples

CONFIG = GrpoConfig(beta=0.04)
SHAPES = {
    "full": Size(prompts=2, tokens=64, hidden=256, layers=4, vocab=16_000),
    "half": Size(prompts=2, tokens=64, hidden=256, layers=2, vocab=16_000),  # where time is short (bench.suite)
    "tiny": replace(SIZES["tiny"], tokens=5),
    "2b": Size(prompts=2, images=4, side=46, tokens=128, hidden=1536, layers=28, vocab=151_936),
    "7b": Size(prompts=2, images=4, side=46, tokens=128, hidden=3584, layers=28, vocab=152_064),
}


@dataclass(frozen=True)
class Problem:
    model: PackedModel  # the policy
    reference: PackedModel
    plain: Any  # the same two, as transformers made them
    plain_reference: Any
    groups: list[Group]
    advantages: torch.Tensor  # [K, G]

    @property
    def responses(self) -> float:
        return float(self.advantages.numel())


def make_problem(size: Size, device: torch.device, dtype: torch.dtype) -> Problem:
    model, plain = (m.to(dtype) for m in make_model(size, device))
    for tower in (model.model.model.visual, plain.model.visual):
        tower.requires_grad_(False)
    rng, generator = np.random.default_rng(1), torch.Generator(device).manual_seed(1)
    groups = [
        Group(s, tuple(rng.integers(5, size.vocab, size.tokens) for _ in range(size.group))) for s in make_samples(size)
    ]
    policy = [deepcopy(m) for m in (model, plain)]
    with torch.no_grad():  # away from the reference, by the same step in both
        for name, p in policy[1].named_parameters():
            if p.requires_grad:
                step = 0.02 * torch.randn(p.shape, generator=generator, device=device) * p.float().std()
                p.add_(step.to(p))
                policy[0].model.get_parameter(name).copy_(p)
    advantages = torch.randn(len(groups), size.group, generator=generator, device=device)
    return Problem(policy[0], model, policy[1], plain, groups, advantages)
