"""C++ face of `policy_loss`, and what the C++ faces of the policy losses share."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import _library
from .._program import Program, row_program
from .._rows import GrpoOutput, PolicyRows, math_dtype, response_factors, row_terms, segment_ids
from ..config import GrpoConfig
from ..group_advantage.cpp_impl import group_advantage
from ..metrics import METRICS

_library.load()
ops = torch.ops.univg_kernels


class RowInputs(NamedTuple):
    """The row tensors of the C++ policy ops, in the order of their schemas: [N], contiguous, in the dtype of the maths.

    A row counts where its weight is not 0.
    """

    advantage: Tensor
    phi: Tensor
    weight: Tensor
    entropy_weight: Tensor | None
    entropy_threshold: Tensor | None  # scalar
    old_logp: Tensor | None
    ref_logp: Tensor | None
    sampling_logp: Tensor | None
    importance: Tensor | None  # where the caller gave the ratio itself

    def part(self, start: int, stop: int) -> RowInputs:
        """Of the rows [start, stop)."""
        return RowInputs._make(t if t is None or t.dim() == 0 else t[start:stop] for t in self)


def row_inputs(
    rows: PolicyRows, config: GrpoConfig, num_rows: int, dtype: torch.dtype, entropy: Tensor | None = None
) -> RowInputs:
    """entropy [N]: needed where `coupling` is "batch"."""
    advantages, phi = response_factors(rows, config, dtype, group_advantage)
    terms = row_terms(rows, config, advantages, phi, num_rows, dtype, entropy)
    importance = rows.token_importance_ratio
    if rows.importance_ratio is not None:
        importance = rows.importance_ratio[segment_ids(rows.cu_seqlens, num_rows)]
    named = (
        *(terms.advantage, terms.phi, terms.weight, terms.entropy_weight, terms.entropy_threshold),
        *(rows.old_logp, rows.ref_logp, rows.sampling_logp, importance),
    )
    return RowInputs._make(None if t is None else t.to(dtype).contiguous() for t in named)


def policy_rows(
    logp: Tensor, entropy: Tensor | None, cu_seqlens: Tensor, inputs: RowInputs, program: Program
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(loss, metrics, a = d loss/d logp [N], b = d loss/d entropy [N]) of whole responses, however rows are coupled.

    The loss is differentiable in logp and entropy, any number of times for once.
    """
    return ops.policy_rows(logp.contiguous(), entropy, cu_seqlens.long(), *inputs, *program)


def policy_loss(logp: Tensor, entropy: Tensor | None, rows: PolicyRows, config: GrpoConfig) -> GrpoOutput:
    dtype = math_dtype(logp)
    lp = logp.to(dtype)
    h = None if entropy is None else entropy.to(dtype).contiguous()
    with torch.no_grad():
        inputs = row_inputs(rows, config, lp.numel(), dtype, h)
    loss, metrics, _, _ = policy_rows(lp, h, rows.cu_seqlens, inputs, row_program(rows, config))
    return GrpoOutput(loss, metrics, torch.where(inputs.weight != 0, lp.detach(), 0.0))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, metrics, a, b = output
    ctx.mark_non_differentiable(metrics, a, b)
    ctx.set_materialize_grads(False)
    ctx.others = len(inputs) - 2
    ctx.save_for_backward(a, b)


@once_differentiable
def _backward(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    a, b = ctx.saved_tensors
    wanted = (upstream is not None and needed for needed in ctx.needs_input_grad[:2])
    return (*(g * upstream if w else None for g, w in zip((a, b), wanted, strict=True)), *[None] * ctx.others)


torch.library.register_autograd("univg_kernels::policy_rows", _backward, setup_context=_setup_context)


@torch.library.register_fake("univg_kernels::policy_rows")
def _(logp: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    metrics = logp.new_empty(len(METRICS), dtype=torch.float32)
    return logp.new_empty(()), metrics, torch.empty_like(logp), torch.empty_like(logp)
