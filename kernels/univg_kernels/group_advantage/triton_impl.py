"""Triton face of `group_advantage`: one program per group."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._rows import GroupAdvantage
from .._triton.launch import launch, vector
from .._triton.responses import MEMBERS, centre, centred_sums, difficulty, group_divisor, segment_mean, std_of
from ..config import GrpoConfig
from ..difficulty_weight.triton_impl import difficulty_weight

WARPS = 1


@triton.jit(do_not_specialize=["B"])
def group_kernel(rewards, accuracy, cu_groups, advantages, phi, mean, std, accuracy_mean, B, advantage_eps, power,
                 SCALE: tl.constexpr, DIFFICULTY: tl.constexpr, CENTER_SINGLETONS: tl.constexpr):  # fmt: skip
    group = tl.program_id(0)
    dtype = rewards.dtype.element_ty
    low, high = tl.load(cu_groups + group), tl.load(cu_groups + group + 1)
    first, offset, squares = centred_sums(rewards, low, high)
    tl.store(mean + group, first + offset)
    tl.store(std + group, std_of(squares, high - low))
    scale = tl.full([], 1.0, dtype)
    if SCALE == "group":
        scale = group_divisor(squares, high - low, advantage_eps, CENTER_SINGLETONS)
    if SCALE == "batch":  # every program goes over all rewards: B is small, and one launch is all there is
        _, _, all_squares = centred_sums(rewards, 0, B)
        scale = std_of(all_squares, B) + advantage_eps
    accuracy_of_group = tl.zeros([], dtype)
    weight = tl.full([], 1.0, dtype)
    if accuracy is not None:
        accuracy_of_group = segment_mean(accuracy, low, high)
        weight = difficulty(accuracy_of_group, power, DIFFICULTY)
    tl.store(accuracy_mean + group, accuracy_of_group)
    for start in range(low, high, MEMBERS):
        i = start + tl.arange(0, MEMBERS)
        r = tl.load(rewards + i, mask=i < high, other=0.0)
        tl.store(advantages + i, centre(r, first, offset, high - low, CENTER_SINGLETONS) / scale, mask=i < high)
        tl.store(phi + i, tl.zeros([MEMBERS], dtype) + weight, mask=i < high)


Stats = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def _empty_stats(rewards: Tensor, cu_groups: Tensor) -> Stats:
    b, k = rewards.numel(), cu_groups.numel() - 1
    advantages, phi, mean, std, accuracy_mean = (rewards.new_empty(n) for n in (b, b, k, k, k))
    return advantages, phi, mean, std, accuracy_mean


@torch.library.custom_op("univg_kernels::triton_group_advantage", mutates_args=())
def triton_group_advantage(
    rewards: Tensor, accuracy: Tensor | None, cu_groups: Tensor,
    scale_rewards: str, advantage_eps: float, difficulty: str, power: float, center_singletons: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    out = _empty_stats(rewards, cu_groups)
    launch(
        group_kernel, cu_groups.numel() - 1, rewards, rewards, accuracy, cu_groups, *out, rewards.numel(),
        advantage_eps, power, SCALE=scale_rewards, DIFFICULTY=difficulty, CENTER_SINGLETONS=center_singletons,
        num_warps=WARPS,
    )  # fmt: skip
    return out


@triton_group_advantage.register_fake
def _(
    rewards: Tensor, accuracy: Tensor | None, cu_groups: Tensor,
    scale_rewards: str, advantage_eps: float, difficulty: str, power: float, center_singletons: bool,
) -> Stats:  # fmt: skip
    return _empty_stats(rewards, cu_groups)


def group_advantage(rewards: Tensor, cu_groups: Tensor, accuracy: Tensor | None, config: GrpoConfig) -> GroupAdvantage:
    r, kind, power = rewards.contiguous(), config.difficulty, float(config.difficulty_power)
    advantages, phi, mean, std, accuracy_mean = triton_group_advantage(
        r, vector(accuracy, r.dtype), cu_groups.contiguous(), config.scale_rewards, float(config.advantage_eps),
        kind, power, config.center_singletons,
    )  # fmt: skip
    if accuracy is not None and config.normalize_difficulty and mean.numel():
        phi = phi / difficulty_weight(accuracy_mean, kind, power, False).mean()
    return GroupAdvantage(advantages, phi, mean, std, accuracy_mean)
