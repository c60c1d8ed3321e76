"""The factors of each row that follow from what its response and the batch are worth. N rows, B responses."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ._rows import GroupAdvantage, PolicyRows
from .config import GrpoConfig


class RowTerms(NamedTuple):
    """Per-row factors, [N] in the dtype of the maths, and the threshold of the entropy.

    L = sum_t weight·(phi·gate·policy_t + beta·kl_t) - sum_t entropy_weight·high_entropy_t·H_t
    """

    advantage: Tensor
    phi: Tensor
    weight: Tensor  # mask / denominator, shared out as the aggregation says; 0 exactly where the mask is False
    entropy_weight: Tensor | None  # holds entropy_coef; None where that is 0
    entropy_threshold: Tensor | None  # scalar


def segment_ids(offsets: Tensor, count: int) -> Tensor:
    """Which segment each of `count` items lies in [count] int64; never waits for the device."""
    items = torch.arange(count, device=offsets.device, dtype=offsets.dtype)
    return torch.searchsorted(offsets, items, right=True) - 1


def response_factors(
    rows: PolicyRows,
    config: GrpoConfig,
    dtype: torch.dtype,
    group_advantage: Callable[[Tensor, Tensor, Tensor | None, GrpoConfig], GroupAdvantage],
) -> tuple[Tensor | None, Tensor | None]:
    """(advantages [B], phi [B]) of what the caller gave; None: token_advantages hold them; phi is 1."""
    if rows.rewards is None:
        return None if rows.advantages is None else rows.advantages.to(dtype), rows.phi
    assert rows.cu_groups is not None  # check_rows
    accuracy = None if rows.accuracy is None else rows.accuracy.to(dtype)
    stats = group_advantage(rows.rewards.to(dtype), rows.cu_groups, accuracy, config)
    return stats.advantages, stats.phi


def row_terms(
    rows: PolicyRows,
    config: GrpoConfig,
    advantages: Tensor | None,
    phi: Tensor | None,
    num_rows: int,
    dtype: torch.dtype,
    entropy: Tensor | None,
) -> RowTerms:
    """Spread the factors of the responses (advantages, phi: [B]) over their rows [N].

    entropy [N]: needed where `coupling` is "batch", otherwise not looked at. Never waits for the device.
    """
    device, b = rows.cu_seqlens.device, rows.cu_seqlens.numel() - 1
    seq = segment_ids(rows.cu_seqlens, num_rows)
    mask = torch.ones(num_rows, dtype=dtype, device=device) if rows.mask is None else rows.mask.to(dtype)
    lengths = torch.zeros(b, dtype=dtype, device=device).index_add_(0, seq, mask)
    if advantages is None:
        assert rows.token_advantages is not None  # check_rows
        advantage = rows.token_advantages.to(dtype)
    else:
        advantage = advantages.to(dtype)[seq]
    advantage = torch.where(mask != 0, advantage, 0.0)
    threshold = find_entropy_threshold(rows, config, mask, entropy)
    weight = torch.where(mask != 0, mask / _denominator(rows, config, lengths), 0.0)  # 0/0 is not NaN
    if config.aggregation == "seq-mean-token-mean":
        weight = weight / lengths.clamp(min=1)[seq]
    elif config.aggregation == "seq-mean-token-sum-norm":
        assert config.max_completion_length is not None  # GrpoConfig
        weight = weight / config.max_completion_length
    entropy_weight = None
    if config.entropy_coef != 0:
        entropy_weight = weight
        if config.entropy_aggregation == "token-mean":
            counted = mask
            if threshold is not None:
                assert entropy is not None
                counted = mask * (torch.where(mask != 0, entropy.detach().to(dtype), 0.0) >= threshold)
            entropy_weight = mask / counted.sum().clamp(min=1)
        entropy_weight = config.entropy_coef * entropy_weight
    phi_rows = torch.ones_like(mask) if phi is None else phi.to(dtype)[seq]
    return RowTerms(advantage, phi_rows, weight.to(dtype), entropy_weight, threshold)


def _denominator(rows: PolicyRows, config: GrpoConfig, lengths: Tensor) -> float | Tensor:
    if rows.denominator is not None:
        return rows.denominator
    if config.aggregation == "token-mean":
        return lengths.sum().clamp(min=1)
    if config.count_empty_responses:
        return max(lengths.numel(), 1)
    return (lengths > 0).sum().clamp(min=1)


def find_entropy_threshold(rows: PolicyRows, config: GrpoConfig, mask: Tensor, entropy: Tensor | None) -> Tensor | None:
    if rows.entropy_threshold is not None:
        given = rows.entropy_threshold
        # A number is written by the device: copying it there would end the capture of a CUDA graph.
        return given.to(mask) if isinstance(given, Tensor) else mask.new_full((), given)
    if config.top_entropy_quantile >= 1:
        return None
    assert entropy is not None  # coupling() is "batch"
    if not mask.numel():
        return mask.new_zeros(())
    counted = torch.where(mask != 0, entropy.detach().to(mask.dtype), torch.nan)
    return torch.nanquantile(counted, 1 - config.top_entropy_quantile)
