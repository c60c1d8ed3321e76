"""The loss of hosts that hand out log-probabilities as padded [B, L] tensors, one advantage a token."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from univg_kernels import METRICS, GrpoConfig, GrpoOutput, policy_loss


def padded_loss(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantages: Tensor,
    mask: Tensor,
    config: GrpoConfig,
    *,
    denominator: float | None = None,
    phi: Tensor | None = None,
    importance: Tensor | None = None,
) -> GrpoOutput:
    """`univg_kernels.policy_loss` of [B, L] log_prob (differentiated), old_log_prob, advantages and mask.

    phi: [B], the difficulty weight. importance: [B, L], a ratio that weighs the policy term. denominator: as in
    `RowArguments`. Where the mask is 0 anything may stand. Nothing waits for the device.
    """
    batch, length = log_prob.shape
    mask = mask.bool()
    per_response = config.loss_type == "gmpo"
    return policy_loss(
        log_prob.reshape(-1),
        torch.arange(batch + 1, device=log_prob.device) * length,
        config=config,
        old_logp=old_log_prob.reshape(-1),
        mask=mask.reshape(-1),
        token_importance_ratio=None if importance is None else importance.reshape(-1),
        phi=phi,
        denominator=denominator,
        advantages=_of_response(advantages, mask) if per_response else None,
        token_advantages=None if per_response else advantages.reshape(-1),
    )


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Of values where the mask, of the same shape, is 1; 0 where it is nowhere."""
    return torch.where(mask.bool(), values, 0.0).sum() / mask.sum().clamp(min=1)


def clip_shares(
    out: GrpoOutput, ratio: Tensor, advantages: Tensor, mask: Tensor, delta: float | None
) -> tuple[Tensor, Tensor]:
    """Of the tokens that count: the share that out's clip stops, and that with A < 0 and a ratio above delta."""
    counts = dict(zip(METRICS, out.metrics, strict=True))
    clipped = (counts["clip_low_sum"] + counts["clip_high_sum"]) / counts["num_tokens"].clamp(min=1)
    beyond = (ratio > (math.inf if delta is None else delta)) & (advantages < 0)
    return clipped, masked_mean(beyond.float(), mask)


def _of_response(advantages: Tensor, mask: Tensor) -> Tensor:
    """[B]: the geometric-mean loss has one advantage a response."""
    return torch.where(mask, advantages, 0.0).sum(-1) / mask.sum(-1).clamp(min=1)
