"""Group statistics, advantages and phi: the specification."""

from __future__ import annotations

import torch
from torch import Tensor

from .._row_terms import segment_ids
from .._rows import GroupAdvantage
from ..config import GrpoConfig
from ..difficulty_weight.reference import difficulty_weight


def group_advantage(rewards: Tensor, cu_groups: Tensor, accuracy: Tensor | None, config: GrpoConfig) -> GroupAdvantage:
    b, k = rewards.numel(), cu_groups.numel() - 1
    group = segment_ids(cu_groups, b)
    size = (cu_groups[1:] - cu_groups[:-1]).to(rewards.dtype)
    first = cu_groups[:-1].long().clamp(max=max(b - 1, 0))

    def group_sum(x: Tensor) -> Tensor:
        return x.new_zeros(k).index_add_(0, group, x)

    # Deviations from the first member: equal rewards then give exactly 0, whatever their value rounds to.
    shift = rewards[first] if b else rewards.new_zeros(k)
    offset = rewards - shift[group]
    mean_offset = group_sum(offset) / size.clamp(min=1)
    centred = offset - mean_offset[group]
    std = (group_sum(centred.square()) / (size - 1).clamp(min=1)).sqrt()  # ddof 1; 0 for a group of one
    if not config.center_singletons:
        centred = torch.where(size[group] == 1, rewards, centred)
    mean = torch.where(size > 0, shift + mean_offset, 0.0)
    if config.scale_rewards == "group":
        divisor = std if config.center_singletons else torch.where(size == 1, 1.0, std)
        advantages = centred / (divisor[group] + config.advantage_eps)
    elif config.scale_rewards == "batch":
        whole = rewards.std() if b > 1 else rewards.new_zeros(())
        advantages = centred / (whole + config.advantage_eps)
    else:
        advantages = centred
    if accuracy is None:
        accuracy_mean, phi = torch.zeros_like(mean), torch.ones_like(rewards)
    else:
        accuracy_mean = group_sum(accuracy) / size.clamp(min=1)
        phi = difficulty_weight(accuracy_mean, config.difficulty, config.difficulty_power, config.normalize_difficulty)[
            group
        ]
    return GroupAdvantage(advantages, phi, mean, std, accuracy_mean)
