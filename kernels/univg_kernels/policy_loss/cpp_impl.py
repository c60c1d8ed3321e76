"""C++ face of `policy_loss`, and what the C++ faces of the policy losses share."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .. import _library
from .._autograd import attach_gradients, needs_grad
from .._rows import GrpoOutput, PolicyRows, RowTerms, math_dtype, row_terms
from ..config import GrpoConfig
from ..group_advantage.cpp_impl import group_advantage
from ..metrics import METRICS

_library.load()
ops = torch.ops.univg_kernels


def program_settings(config: GrpoConfig) -> tuple[Any, ...]:
    """The scalars of the row program, in the order of the schemas."""
    delta = math.inf if config.delta is None else config.delta
    return (config.loss_type, config.epsilon_low, config.epsilon_high, delta, config.beta)


def program_rows(
    rows: PolicyRows, config: GrpoConfig, num_rows: int, dtype: torch.dtype
) -> tuple[RowTerms, Tensor | None, Tensor | None]:
    """(terms, old_logp, ref_logp), all [N], contiguous and in `dtype`."""
    if rows.advantages is not None:
        advantages, phi = rows.advantages, rows.phi
    else:
        assert rows.rewards is not None and rows.cu_groups is not None  # check_rows
        accuracy = None if rows.accuracy is None else rows.accuracy.to(dtype)
        stats = group_advantage(rows.rewards.to(dtype), rows.cu_groups, accuracy, config)
        advantages, phi = stats.advantages, stats.phi
    terms = row_terms(rows, advantages, phi, num_rows, dtype)
    old, ref = (None if t is None else t.to(dtype).contiguous() for t in (rows.old_logp, rows.ref_logp))
    return terms, old, ref


@torch.no_grad()
def _forward(
    logp: Tensor, entropy: Tensor | None, rows: PolicyRows, config: GrpoConfig
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = math_dtype(logp)
    terms, old, ref = program_rows(rows, config, logp.numel(), dtype)
    lp = logp.to(dtype).contiguous()
    h = None if entropy is None else entropy.to(dtype).contiguous()
    loss, metrics, grad = ops.policy_rows(lp, h, *terms, old, ref, *program_settings(config))
    return loss, metrics, grad, torch.where(terms.weight != 0, lp, 0.0)


def policy_loss(logp: Tensor, entropy: Tensor | None, rows: PolicyRows, config: GrpoConfig) -> GrpoOutput:
    loss, metrics, grad, lp = _forward(logp, entropy, rows, config)
    if any(needs_grad(logp)):
        loss = attach_gradients("policy_loss", loss, [logp], [grad.to(logp.dtype)])
    return GrpoOutput(loss, metrics, lp)


@torch.library.register_fake("univg_kernels::policy_rows")
def _(logp: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    metrics = logp.new_empty(len(METRICS), dtype=torch.float32)
    return logp.new_empty(()), metrics, torch.empty_like(logp)
