"""What the three policy losses know about their rows, and the per-row factors that follow from it.

N rows, B responses, K groups.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ._checks import FLOATS, check_offsets, check_tensor
from .config import GrpoConfig


class GrpoOutput(NamedTuple):
    """loss: scalar fp32 (fp64 for fp64 input), differentiable · metrics: fp32 [len(METRICS)], see METRICS ·
    logp: fp32 [N], detached, 0 where the mask is False."""

    loss: Tensor
    metrics: Tensor
    logp: Tensor


class GroupAdvantage(NamedTuple):
    """advantages [B], phi [B] of the responses; mean [K], std [K] (ddof 1) of the rewards and accuracy_mean [K]."""

    advantages: Tensor
    phi: Tensor
    mean: Tensor
    std: Tensor
    accuracy_mean: Tensor


class PolicyRows(NamedTuple):
    """The checked row arguments, as every face gets them. Either rewards and cu_groups, or advantages."""

    cu_seqlens: Tensor  # [B+1] int32|int64
    rewards: Tensor | None  # [B]
    accuracy: Tensor | None  # [B]
    cu_groups: Tensor | None  # [K+1] int32|int64
    advantages: Tensor | None  # [B]
    phi: Tensor | None  # [B]
    old_logp: Tensor | None  # [N]
    ref_logp: Tensor | None  # [N]; None also when beta is 0
    mask: Tensor | None  # [N] bool
    num_responses: float | Tensor  # what the sum over responses is divided by


class RowTerms(NamedTuple):
    """Per-row factors, all [N] in the dtype of the maths: L = sum_t weight·(phi·policy_t + beta·kl_t)."""

    advantage: Tensor
    phi: Tensor
    weight: Tensor  # mask / (num_responses · max(|o_i|, 1)); 0 exactly where the mask is False


def math_dtype(x: Tensor) -> torch.dtype:
    """What the maths runs in: fp64 for fp64 input, fp32 for everything else."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def check_rows(
    op: str,
    num_rows: int,
    device: torch.device,
    config: GrpoConfig,
    cu_seqlens: Tensor,
    rewards: Tensor | None,
    accuracy: Tensor | None,
    cu_groups: Tensor | None,
    advantages: Tensor | None,
    phi: Tensor | None,
    old_logp: Tensor | None,
    ref_logp: Tensor | None,
    mask: Tensor | None,
    num_responses: float | Tensor | None,
) -> PolicyRows:
    """Raise ValueError for what cannot be; give back the arguments with defaults filled in."""
    cu_seqlens = check_offsets(op, "cu_seqlens", cu_seqlens, num_rows, device, "rows N")
    b = cu_seqlens.numel() - 1
    if (rewards is None) == (advantages is None):
        raise ValueError(
            f"{op}: give either rewards with cu_groups [and accuracy], or advantages [and phi]; "
            f"got {'neither' if rewards is None else 'both'}"
        )
    if rewards is not None and (cu_groups is None or phi is not None):
        raise ValueError(f"{op}: rewards need cu_groups [K+1], and their phi follows from accuracy; drop phi")
    if advantages is not None and (cu_groups is not None or accuracy is not None):
        raise ValueError(f"{op}: cu_groups and accuracy belong to rewards; with advantages give phi [B] instead")
    for name, value in (
        ("rewards", rewards),
        ("accuracy", accuracy),
        ("advantages", advantages),
        ("phi", phi),
    ):
        if value is not None:
            check_tensor(op, name, value, (b,), FLOATS, device, "one value per response")
    if cu_groups is not None:
        check_offsets(op, "cu_groups", cu_groups, b, device, "responses B")
    for name, value in (("old_logp", old_logp), ("ref_logp", ref_logp)):
        if value is not None:
            check_tensor(op, name, value, (num_rows,), FLOATS, device, "one value per row")
    if mask is not None:
        check_tensor(op, "mask", mask, (num_rows,), (torch.bool,), device)
    if isinstance(num_responses, Tensor):
        check_tensor(op, "num_responses", num_responses, (), (*FLOATS, torch.int64, torch.int32), device)
    elif num_responses is not None and not 0 < num_responses < float("inf"):
        raise ValueError(f"{op}: num_responses must be a finite number > 0, got {num_responses!r}")
    return PolicyRows(
        cu_seqlens=cu_seqlens,
        rewards=_detached(rewards),
        accuracy=_detached(accuracy),
        cu_groups=cu_groups,
        advantages=_detached(advantages),
        phi=_detached(phi),
        old_logp=_detached(old_logp),
        ref_logp=None if config.beta == 0 else _detached(ref_logp),
        mask=mask,
        num_responses=max(b, 1) if num_responses is None else num_responses,
    )


def _detached(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.detach()


def segment_ids(offsets: Tensor, count: int) -> Tensor:
    """Which segment each of `count` items lies in [count] int64; never waits for the device."""
    items = torch.arange(count, device=offsets.device, dtype=offsets.dtype)
    return torch.searchsorted(offsets, items, right=True) - 1


def row_terms(rows: PolicyRows, advantages: Tensor, phi: Tensor | None, num_rows: int, dtype: torch.dtype) -> RowTerms:
    """Spread the factors of the responses (advantages, phi: [B]) over their rows [N]."""
    seq = segment_ids(rows.cu_seqlens, num_rows)
    mask = torch.ones(num_rows, dtype=dtype, device=seq.device) if rows.mask is None else rows.mask.to(dtype)
    lengths = torch.zeros(advantages.numel(), dtype=dtype, device=seq.device).index_add_(0, seq, mask)
    weight = (mask / lengths.clamp(min=1)[seq]) / rows.num_responses
    ones = torch.ones_like(mask)
    return RowTerms(advantages.to(dtype)[seq], ones if phi is None else phi.to(dtype)[seq], weight.to(dtype))
