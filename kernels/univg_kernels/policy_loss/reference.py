"""The row program (the loss table) and its reduction: the specification.

L = sum_t w_t·(phi_t·policy_t + beta·kl_t). A loss type is one entry of POLICY; nothing else knows of loss types.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._rows import GrpoOutput, PolicyRows, math_dtype, row_terms
from ..config import GrpoConfig
from ..group_advantage.reference import group_advantage


def clipped_surrogate(ratio: Tensor, advantage: Tensor, config: GrpoConfig) -> Tensor:
    """-min(ρ'·A, clip(ρ, 1 - epsilon_low, 1 + epsilon_high)·A), ρ' = min(ρ, delta)."""
    bounded = ratio if config.delta is None else ratio.clamp(max=config.delta)
    clipped = ratio.clamp(1 - config.epsilon_low, 1 + config.epsilon_high)
    return -torch.minimum(bounded * advantage, clipped * advantage)


POLICY = {"grpo": clipped_surrogate}


def policy_loss(logp: Tensor, entropy: Tensor | None, rows: PolicyRows, config: GrpoConfig) -> GrpoOutput:
    keep = torch.ones_like(logp, dtype=torch.bool) if rows.mask is None else rows.mask
    dtype = math_dtype(logp)
    advantages, phi = response_factors(rows, config, dtype)
    terms = row_terms(rows, advantages, phi, logp.numel(), dtype)

    def kept(x: Tensor) -> Tensor:  # rows that do not count hold anything, even NaN
        return torch.where(keep, x.to(dtype), 0.0)

    lp = kept(logp)
    old = lp.detach() if rows.old_logp is None else kept(rows.old_logp)
    ratio = torch.exp(lp - old)
    value = terms.phi * POLICY[config.loss_type](ratio, terms.advantage, config)
    kl = torch.zeros_like(lp)
    if rows.ref_logp is not None:
        d = kept(rows.ref_logp) - lp
        kl = torch.exp(d) - d - 1  # k3
        value = value + config.beta * kl
    loss = (terms.weight * value).sum()

    with torch.no_grad():
        seen = ratio if config.delta is None else ratio.clamp(max=config.delta)
        low = (seen < 1 - config.epsilon_low) & (terms.advantage < 0)
        high = (seen > 1 + config.epsilon_high) & (terms.advantage > 0)
        h = torch.zeros_like(lp) if entropy is None else kept(entropy)
        sums = [keep, kl, h, low & keep, high & keep, torch.where(keep, ratio, 0.0)]
        maxima = [torch.where(keep, ratio, 0.0), (lp - old).abs()]
        metrics = torch.stack([x.sum(dtype=dtype) for x in sums] + [x.amax() if x.numel() else x.sum() for x in maxima])
    return GrpoOutput(loss, metrics.float(), lp.detach())


def response_factors(rows: PolicyRows, config: GrpoConfig, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """(advantages [B], phi [B] or None) of what the caller gave."""
    if rows.advantages is not None:
        return rows.advantages.to(dtype), rows.phi
    assert rows.rewards is not None and rows.cu_groups is not None  # check_rows
    accuracy = None if rows.accuracy is None else rows.accuracy.to(dtype)
    stats = group_advantage(rows.rewards.to(dtype), rows.cu_groups, accuracy, config)
    return stats.advantages, stats.phi
