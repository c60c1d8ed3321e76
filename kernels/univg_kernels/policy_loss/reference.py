"""The row program and its reduction: the specification. What a loss type is, table.py knows.

L = sum_t w_t·(phi_t·gate_t·policy_t + beta·kl_t) - entropy_coef·sum_t e_t·H_t
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .._row_terms import response_factors, row_terms, segment_ids
from .._rows import GrpoOutput, PolicyRows, math_dtype
from ..config import GrpoConfig
from ..group_advantage.reference import group_advantage
from .table import KLS, LOSSES, VESPO_LOWEST, RowState


def policy_loss(logp: Tensor, entropy: Tensor | None, rows: PolicyRows, config: GrpoConfig) -> GrpoOutput:
    keep = torch.ones_like(logp, dtype=torch.bool) if rows.mask is None else rows.mask
    dtype = math_dtype(logp)
    advantages, phi = response_factors(rows, config, dtype, group_advantage)
    terms = row_terms(rows, config, advantages, phi, logp.numel(), dtype, entropy)
    seq = segment_ids(rows.cu_seqlens, logp.numel())

    def kept(x: Tensor) -> Tensor:  # rows that do not count hold anything, even NaN
        return torch.where(keep, x.to(dtype), 0.0)

    def total(x: Tensor) -> Tensor:
        return x.new_zeros(rows.cu_seqlens.numel() - 1).index_add(0, seq, kept(x))[seq]

    size = total(torch.ones_like(logp, dtype=dtype)).clamp(min=1)
    lp = kept(logp)
    h = torch.zeros_like(lp) if entropy is None else kept(entropy)
    old = lp.detach() if rows.old_logp is None else kept(rows.old_logp)
    difference = lp - old
    ratio = torch.exp(_log_ratio(lp, difference, total(difference) / size, config))
    importance, log_sum, sampling_difference = _importance(rows, config, old.detach(), kept, total, size, seq)
    high = torch.ones_like(lp) if terms.entropy_threshold is None else (h >= terms.entropy_threshold).to(dtype)
    state = RowState(lp, difference, ratio, terms.advantage, importance, log_sum, high, total)
    gate = _gate(state, config, old.detach() if rows.sampling_logp is None else kept(rows.sampling_logp), size)
    value = terms.phi * torch.where(gate != 0, gate * LOSSES[config.loss_type].value(state, config), 0.0)
    kl = torch.zeros_like(lp)
    if rows.ref_logp is not None:
        kl = KLS[config.kl_estimator].value(lp, kept(rows.ref_logp), config)
        weighted = kl * ratio if config.use_bias_correction_kl else kl
        value = value + config.beta * (weighted * importance if config.importance_sampling_on_kl else weighted)
    # A row that lost its loss must not look like a row without a gradient.
    lost = value.isnan()
    value = value + torch.where(lost, lp, 0.0) * torch.zeros_like(lp).masked_fill(lost, torch.nan)
    loss = (terms.weight * torch.where(keep, value, 0.0)).sum()
    if terms.entropy_weight is not None:
        loss = loss - (terms.entropy_weight * high * h).sum()

    with torch.no_grad():
        low_clip, high_clip = _clipped(state, config)
        one = torch.ones_like(lp)
        sums = [one, kl, h, low_clip, high_clip, ratio, importance, gate == 0]
        maxima = [ratio, difference.abs(), importance, sampling_difference.abs()]
        parts = [torch.where(keep, x.to(dtype), 0.0) for x in (*sums, *maxima)]
        sums, maxima = parts[: len(sums)], parts[len(sums) :]
        metrics = torch.stack([x.sum() for x in sums] + [x.amax() if x.numel() else x.sum() for x in maxima])
    return GrpoOutput(loss, metrics.float(), lp.detach())


def _log_ratio(lp: Tensor, difference: Tensor, mean: Tensor, config: GrpoConfig) -> Tensor:
    level = config.importance_sampling_level
    if level == "token":
        log_ratio = difference
    elif level == "sequence":
        log_ratio = mean
    else:
        log_ratio = lp - lp.detach() + mean.detach()
    return log_ratio.clamp(*config.log_ratio_bounds)


def _importance(
    rows: PolicyRows,
    config: GrpoConfig,
    old: Tensor,
    kept: Callable[[Tensor], Tensor],
    total: Callable[[Tensor], Tensor],
    size: Tensor,
    seq: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """(importance ratio, sum of its logarithm over the response, old_logp - sampling_logp), [N], no gradient."""
    one, zero = torch.ones_like(old), torch.zeros_like(old)
    difference = zero
    if rows.sampling_logp is not None:
        difference = (old - kept(rows.sampling_logp)).nan_to_num(nan=0.0, posinf=torch.inf, neginf=-torch.inf)
    mode, per_response = config.importance_sampling_mode, False
    if rows.token_importance_ratio is not None:
        ratio = torch.where(kept(one) != 0, kept(rows.token_importance_ratio), 1.0)
    elif rows.importance_ratio is not None:
        ratio, per_response = rows.importance_ratio.to(old.dtype)[seq], True
    elif rows.sampling_logp is not None and mode != "none":
        per_response = mode.startswith("sequence")
        mean = 1 if config.importance_sampling_aggregation == "sum" else size
        ratio = torch.exp(total(difference) / mean if per_response else difference)
        low, high = config.importance_sampling_clip_min, config.importance_sampling_clip_max
        inside = (ratio >= low) & (ratio <= high)
        ratio = torch.where(inside, ratio, 0.0) if mode.endswith("mask") else ratio.clamp(low, high)
    else:
        return one, zero, difference
    logarithm = ratio.log().clamp(VESPO_LOWEST, 20)
    return ratio, logarithm if per_response else total(logarithm), difference


def _gate(state: RowState, config: GrpoConfig, sampling: Tensor, size: Tensor) -> Tensor:
    """The detached factor of the policy term: importance ratio, off-policy mask, entropy mask."""
    if config.loss_type == "vespo":  # has the ratio in its weight
        gate = state.high_entropy
    elif config.loss_type == "gmpo":  # is a geometric mean, of the ratio as well; the mask is in the mean
        gate = torch.exp(state.total(state.importance.log()) / size)
    else:
        gate = state.importance * state.high_entropy
    if config.off_policy_mask_threshold is not None:
        drift = state.total((sampling - state.logp.detach()).nan_to_num(nan=0.0)) / size
        gate = gate * ~((state.advantage < 0) & (drift > config.off_policy_mask_threshold))
    return gate


def _clipped(state: RowState, config: GrpoConfig) -> tuple[Tensor, Tensor]:
    """Where the clip took effect: (below with A < 0, above with A > 0)."""
    low, high = config.clip_bounds
    seen = state.difference.exp() if config.loss_type == "gmpo" else state.ratio
    if config.delta is not None and config.loss_type not in ("cispo", "gmpo"):
        seen = seen.clamp(max=config.delta)
    return (seen < low) & (state.advantage < 0), (seen > high) & (state.advantage > 0)
