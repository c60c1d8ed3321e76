"""Stage 2: the policy loss of a row, and log-probs without a gradient for the reference policy."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from univg_kernels import Backend, GrpoConfig, GrpoOutput, linear_grpo_loss, linear_logprob

from univg_fast.model.packed import Head
from univg_fast.packing import Row


@dataclass
class RowTargets:
    """What stage 2 knows about a row's B responses and N tokens, on the row's device."""

    advantages: torch.Tensor  # [B] fp32
    phi: torch.Tensor  # [B] fp32, the group's difficulty weight
    ref_logp: torch.Tensor | None = None  # [N] fp32
    old_logp: torch.Tensor | None = None  # [N] fp32; None: the policy itself, ratio 1
    sampling_logp: torch.Tensor | None = None  # [N] fp32, as the rollout has them


def denominator(config: GrpoConfig, responses: float, tokens: float) -> float:
    """What the sum behind the loss is divided by; `responses`, `tokens`: that count, of all rows and ranks."""
    return max(tokens if config.aggregation == "token-mean" else responses, 1.0)


def grpo_head(row: Row, targets: RowTargets, divisor: float, config: GrpoConfig, backend: Backend = "auto") -> Head:
    """The row's share of a loss whose `denominator` is `divisor`: the shares of all rows and ranks add up to it."""

    def head(hidden: torch.Tensor, weight: torch.Tensor) -> GrpoOutput:
        return linear_grpo_loss(
            hidden,
            weight,
            row.target_ids,
            row.cu_seqlens,
            advantages=targets.advantages,
            phi=targets.phi,
            old_logp=targets.old_logp,
            ref_logp=targets.ref_logp,
            sampling_logp=targets.sampling_logp,
            denominator=divisor,
            config=config,
            backend=backend,
        )

    return head


def logprob_head(row: Row, temperature: float, backend: Backend = "auto") -> Head:
    """Log-probs of the row's targets, [N] fp32; call it under no_grad for a reference or old policy."""

    def head(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return linear_logprob(hidden, weight, row.target_ids, temperature=temperature, backend=backend)[0]

    return head
