"""A plain copy of the policy where ZeRO 3 holds its parameters in pieces."""

from __future__ import annotations

import copy
from typing import Any

import torch

from univg_fast.model import PackedModel


def plain_copy(module: PackedModel, zero_stage: int) -> PackedModel:
    """What rollout reads: the module itself, or under ZeRO 3 a full copy without hooks. To be made before the engine.

    Under ZeRO 3 every rank must run the same number of forward passes through the partitioned module, which sampling
    cannot promise; a copy is free of that. `refresh` brings it up to date.
    """
    return module if zero_stage < 3 else copy.deepcopy(module).requires_grad_(False)


def declare_head(module: PackedModel, zero_stage: int) -> None:
    """Tell ZeRO 3 that `module`'s own forward reads the vocabulary projection, outside the projection's forward."""
    if zero_stage == 3:
        import deepspeed

        deepspeed.zero.register_external_parameter(module, module.model.lm_head.weight)


def refresh(copied: PackedModel, engine: Any) -> None:
    """Bring a ZeRO-3 copy up to date, parameter by parameter. Collective. Nothing to do below stage 3."""
    if copied is engine.module:
        return
    import deepspeed

    with torch.no_grad():
        for target, source in zip(copied.parameters(), engine.module.parameters(), strict=True):
            with deepspeed.zero.GatheredParameters([source]):
                target.copy_(source)
