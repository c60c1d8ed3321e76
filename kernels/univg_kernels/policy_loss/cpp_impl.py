"""C++ face of `policy_loss`, and what the C++ faces of the policy losses share."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import _library
from .._autograd import needs_grad
from .._program import Program, row_program
from .._row_terms import response_factors, row_terms, segment_ids
from .._rows import GrpoOutput, PolicyRows, math_dtype
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

    def part(self, rows: slice | Tensor) -> RowInputs:
        """Of some rows."""
        return RowInputs._make(t if t is None or t.dim() == 0 else t[rows] for t in self)


def row_inputs(
    rows: PolicyRows, config: GrpoConfig, num_rows: int, dtype: torch.dtype, entropy: Tensor | None = None
) -> RowInputs:
    """entropy [N]: needed where `coupling` is "batch"."""
    advantages, phi = response_factors(rows, config, dtype, group_advantage)
    bonus_or_mask = config.entropy_coef != 0 or config.top_entropy_quantile < 1 or rows.entropy_threshold is not None
    importance = rows.token_importance_ratio
    terms: tuple[Tensor | None, ...]
    if bonus_or_mask or not rows.cu_seqlens.is_cpu:
        terms = row_terms(rows, config, advantages, phi, num_rows, dtype, entropy)
        if rows.importance_ratio is not None:
            importance = rows.importance_ratio[segment_ids(rows.cu_seqlens, num_rows)]
    else:
        *found, spread = _spread(rows, config, advantages, phi, num_rows, dtype)
        terms = (*found, None, None)
        if rows.importance_ratio is not None:
            importance = spread
    named = (*terms, rows.old_logp, rows.ref_logp, rows.sampling_logp, importance)
    return RowInputs._make(None if t is None else t.to(dtype).contiguous() for t in named)


def _spread(
    rows: PolicyRows,
    config: GrpoConfig,
    advantages: Tensor | None,
    phi: Tensor | None,
    num_rows: int,
    dtype: torch.dtype,
) -> tuple[Tensor, ...]:
    """(advantage, phi, weight, importance ratio) [N]: `row_terms` in one pass, where the entropy has no say."""
    denominator = rows.denominator
    if denominator is not None and not isinstance(denominator, Tensor):
        denominator = torch.full((), denominator, dtype=dtype)
    floats = (advantages, rows.token_advantages, phi, rows.importance_ratio, denominator)
    return ops.row_terms(
        *(torch.empty(num_rows, dtype=dtype), rows.cu_seqlens.long(), rows.mask),
        *(None if t is None else t.to(dtype).contiguous() for t in floats),
        *(config.aggregation, config.count_empty_responses, float(config.max_completion_length or 0)),
    )


def policy_rows(
    logp: Tensor, entropy: Tensor | None, cu_seqlens: Tensor, inputs: RowInputs, program: Program
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(loss, metrics, a = d loss/d logp [N], b = d loss/d entropy [N]) of whole responses, however rows are coupled.

    The loss is differentiable in logp and entropy, any number of times for once.
    """
    if torch.compiler.is_compiling() or not any(needs_grad(logp, entropy)):
        return ops.policy_rows(logp.contiguous(), entropy, cu_seqlens.long(), *inputs, *program)
    # The autograd of torch.library takes 0.1 ms for this many arguments.
    with torch.no_grad():
        loss, metrics, a, b = policy_rows(logp, entropy, cu_seqlens, inputs, program)
    return _WithSlopes.apply(loss, logp, entropy, a, b), metrics, a, b


def policy_loss(logp: Tensor, entropy: Tensor | None, rows: PolicyRows, config: GrpoConfig) -> GrpoOutput:
    dtype = math_dtype(logp)
    lp = logp.to(dtype)
    h = None if entropy is None else entropy.to(dtype).contiguous()
    with torch.no_grad():
        inputs = row_inputs(rows, config, lp.numel(), dtype, h)
    loss, metrics, _, _ = policy_rows(lp, h, rows.cu_seqlens, inputs, row_program(rows, config))
    kept = lp.detach()
    return GrpoOutput(loss, metrics, kept if rows.mask is None else torch.where(rows.mask, kept, 0.0))


def _upstream(ctx: Any, upstream: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    a, b = ctx.saved_tensors
    by_logp, by_entropy = ctx.wants if upstream is not None else (False, False)
    return a * upstream if by_logp else None, b * upstream if by_entropy else None


class _WithSlopes(torch.autograd.Function):
    """loss as a function of logp and entropy, with d loss/d logp = a and d loss/d entropy = b."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, logp: Tensor, entropy: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
        ctx.wants = ctx.needs_input_grad[1:3]
        ctx.save_for_backward(a, b)
        return loss.view_as(loss)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *_upstream(ctx, upstream), None, None)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, metrics, a, b = output
    ctx.mark_non_differentiable(metrics, a, b)
    ctx.set_materialize_grads(False)
    ctx.wants, ctx.others = ctx.needs_input_grad[:2], len(inputs) - 2
    ctx.save_for_backward(a, b)


@once_differentiable
def _backward(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    return (*_upstream(ctx, upstream), *[None] * ctx.others)


torch.library.register_autograd("univg_kernels::policy_rows", _backward, setup_context=_setup_context)


@torch.library.register_fake("univg_kernels::policy_rows")
def _(logp: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    metrics = logp.new_empty(len(METRICS), dtype=torch.float32)
    return logp.new_empty(()), metrics, torch.empty_like(logp), torch.empty_like(logp)


@torch.library.register_fake("univg_kernels::row_terms")
def _(like: Tensor, cu_seqlens: Tensor, *args: Any) -> tuple[Tensor, ...]:
    importance_ratio = args[4]
    rows = (torch.empty_like(like) for _ in range(3))
    return (*rows, like.new_empty(0 if importance_ratio is None else like.shape[0]))
