"""C++ face of `group_advantage`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _library
from .._row_terms import segment_ids
from .._rows import GroupAdvantage
from ..config import GrpoConfig
from ..difficulty_weight.cpp_impl import difficulty_weight

_library.load()
ops = torch.ops.univg_kernels


def group_advantage(rewards: Tensor, cu_groups: Tensor, accuracy: Tensor | None, config: GrpoConfig) -> GroupAdvantage:
    cu = cu_groups.long()
    advantages, mean, std = ops.group_advantage(
        rewards.contiguous(), cu, config.scale_rewards, config.advantage_eps, config.center_singletons
    )
    if accuracy is None:
        return GroupAdvantage(advantages, torch.ones_like(rewards), mean, std, torch.zeros_like(mean))
    accuracy_mean = ops.group_mean(accuracy.contiguous(), cu)
    phi = difficulty_weight(accuracy_mean, config.difficulty, config.difficulty_power, config.normalize_difficulty)
    return GroupAdvantage(advantages, phi[segment_ids(cu, rewards.numel())], mean, std, accuracy_mean)


@torch.library.register_fake("univg_kernels::group_advantage")
def _(rewards: Tensor, cu_groups: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    k = cu_groups.shape[0] - 1
    return torch.empty_like(rewards), rewards.new_empty(k), rewards.new_empty(k)


@torch.library.register_fake("univg_kernels::group_mean")
def _(values: Tensor, cu_groups: Tensor) -> Tensor:
    return values.new_empty(cu_groups.shape[0] - 1)
