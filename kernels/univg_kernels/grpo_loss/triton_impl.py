"""Triton face of `grpo_loss`.

Rows that know their gradient by themselves: one program takes a row from its logits to its gradient, in one launch, and
the row head of the linear loss is the same kernel on a chunk. Rows that depend on others: log-probabilities, then
`policy_rows`, then the gradient over the logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._autograd import attach_gradients, needs_grad
from .._rows import GrpoOutput, PolicyRows, coupling
from .._softmax import SoftmaxSpec, separate_rows, softmax_spec
from .._triton.launch import check_dtype, launch, row_launch
from .._triton.partials import empty_partials, reduce_partials, store_partials
from .._triton.responses import advantage_and_phi, count_rows, find_segment, row_weights
from .._triton.row_program import known_rows, loss_row
from .._triton.rows import SCHEMA, KernelRows, kernel_arguments, row_arguments
from .._triton.scale import scale_on_device
from .._triton.softmax import fill_zeros, load_tile, log_probability, sweep_backward, sweep_forward, target_logit
from ..config import GrpoConfig
from ..policy_loss.triton_impl import triton_policy_rows
from ..selective_logprob.triton_impl import (
    columns_that_exist,
    triton_logprob,
    triton_logprob_backward,
    triton_logprob_backward_,
)


@triton.jit(do_not_specialize=["N", "row_start", "num_responses", "num_groups"])
def grpo_rows_kernel(logits, stride, gradient, gradient_stride, token_ids, logp, coefficients, partials, N, row_start,
                     V, vocab, scale, cap, num_responses, rows, num_groups, numbers,
                     BRANCHES: tl.constexpr, LANES: tl.constexpr, VEC: tl.constexpr):  # fmt: skip
    """Row row_start + program of N; the logits begin at row_start. `gradient` may be `logits`, or None."""
    HAS_B: tl.constexpr = BRANCHES.bonus != "none"
    program = tl.program_id(0)
    n = row_start + program
    row = logits + program.to(tl.int64) * stride
    out = gradient
    if gradient is not None:
        out = gradient + program.to(tl.int64) * gradient_stride
    keep = n >= 0
    if rows.mask is not None:
        keep = tl.load(rows.mask + n) != 0
    if keep:
        # Both loads of logits go out before the factors are looked up: their latencies overlap.
        first = load_tile(row, 0, V, LANES, VEC)
        target = tl.load(token_ids + n)
        z = target_logit(row, target, V, vocab)
        response = find_segment(rows.cu_seqlens, num_responses, n)
        advantage, phi = advantage_and_phi(response, rows, num_groups, numbers, BRANCHES)
        length = tl.full([], 1.0, tl.float32)
        if BRANCHES.token_mean:
            begin, end = tl.load(rows.cu_seqlens + response), tl.load(rows.cu_seqlens + response + 1)
            length = count_rows(begin, end, rows.mask)
        weight, entropy_weight = row_weights(length, rows, numbers, BRANCHES)
        top, log2_mass, entropy = sweep_forward(row, first, V, vocab, scale, cap, LANES, VEC)
        lp = log_probability(z, scale, cap, top, log2_mass)
        advantage, difference, ref, importance, sampling_difference, _, high_entropy = known_rows(
            n, keep, lp, entropy, advantage, rows, numbers, BRANCHES
        )
        if BRANCHES.importance == "sequence_given":
            importance = tl.load(rows.importance_ratio + response)
        gate = importance * high_entropy
        loss, a, _, kl, ratio, low, high = loss_row(
            lp, difference, difference, ref, advantage, phi, weight, importance, gate, lp, lp, numbers, BRANCHES
        )
        b = tl.zeros_like(lp)
        if HAS_B:
            b = -entropy_weight * high_entropy
            loss += b * entropy
        tl.store(logp + n, lp)
        if coefficients is not None:
            tl.store(coefficients + n, a)
            tl.store(coefficients + N + n, b)
        store_partials(
            partials, N, n, loss, 1.0, kl, entropy, low, high, ratio, importance, (gate == 0).to(tl.float32),
            tl.abs(difference), tl.abs(sampling_difference), None,
        )  # fmt: skip
        if gradient is not None:
            if (a == 0.0) & (b == 0.0):
                fill_zeros(out, V, LANES, VEC)
            else:
                sweep_backward(row, out, target, V, vocab, scale, cap, top, log2_mass, a, b, entropy, HAS_B, LANES, VEC)
    else:
        tl.store(logp + n, 0.0)
        if coefficients is not None:
            tl.store(coefficients + n, 0.0)
            tl.store(coefficients + N + n, 0.0)
        store_partials(partials, N, n, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, None)
        if gradient is not None:
            fill_zeros(out, V, LANES, VEC)


def _launch(
    logits: Tensor, gradient: Tensor | None, token_ids: Tensor, logp: Tensor, coefficients: Tensor | None,
    partials: Tensor, row_start: int, scale: float, cap: float, rows: KernelRows, vocab_size: int | None,
) -> None:  # fmt: skip
    (count, v), arguments = logits.shape, kernel_arguments(*rows)
    launch(
        grpo_rows_kernel, count, logits, logits, logits.stride(0),
        gradient, 0 if gradient is None else gradient.stride(0), token_ids, logp, coefficients, partials, logp.numel(),
        row_start, v, columns_that_exist(v, vocab_size), scale, cap or None, arguments["rows"].cu_seqlens.numel() - 1,
        **arguments, **row_launch(v, logits.element_size())._asdict(),
    )  # fmt: skip


_ROWS = f"int row_start, float scale, float cap, {SCHEMA}, int? vocab_size=None"


@torch.library.custom_op(
    "univg_kernels::triton_grpo_rows",
    mutates_args=("gradient", "logp", "coefficients", "partials"),
    schema="(Tensor logits, Tensor(a!)? gradient, Tensor token_ids, Tensor(b!) logp, Tensor(c!)? coefficients, "
    f"Tensor(d!) partials, {_ROWS}) -> ()",
)
def triton_grpo_rows(
    logits: Tensor, gradient: Tensor | None, token_ids: Tensor, logp: Tensor, coefficients: Tensor | None,
    partials: Tensor, row_start: int, scale: float, cap: float, tensors: Sequence[Tensor | None],
    numbers: Sequence[float], choices: Sequence[str], flags: Sequence[bool], vocab_size: int | None = None,
) -> None:  # fmt: skip
    """Score the rows [row_start, row_start + len(logits)) of N, for `coupling` "row".

    Written are logp [N], partials [_, N], where given coefficients [2, N] (a = dL/dlogp, b = dL/dH: both 0 for a row
    without a gradient), and where given the gradient [len(logits), V].
    """
    rows = KernelRows(list(tensors), list(numbers), list(choices), list(flags))
    _launch(logits, gradient, token_ids, logp, coefficients, partials, row_start, scale, cap, rows, vocab_size)


@torch.library.custom_op(
    "univg_kernels::triton_grpo_rows_",
    mutates_args=("logits", "logp", "coefficients", "partials"),
    schema="(Tensor(a!) logits, Tensor token_ids, Tensor(b!) logp, Tensor(c!)? coefficients, Tensor(d!) partials, "
    f"{_ROWS}) -> ()",
)
def triton_grpo_rows_(
    logits: Tensor, token_ids: Tensor, logp: Tensor, coefficients: Tensor | None, partials: Tensor, row_start: int,
    scale: float, cap: float, tensors: Sequence[Tensor | None], numbers: Sequence[float], choices: Sequence[str],
    flags: Sequence[bool], vocab_size: int | None = None,
) -> None:  # fmt: skip
    """The same; the gradient takes the place of the logits."""
    rows = KernelRows(list(tensors), list(numbers), list(choices), list(flags))
    _launch(logits, logits, token_ids, logp, coefficients, partials, row_start, scale, cap, rows, vocab_size)


class _Call(NamedTuple):
    logits: Tensor  # detached, with separate rows
    token_ids: Tensor
    rows: PolicyRows
    config: GrpoConfig
    softmax: SoftmaxSpec
    wanted: bool  # a gradient
    over: bool  # written over the logits


Outcome = tuple[Tensor, Tensor, Tensor, Tensor | None]  # loss, metrics, logp, gradient


def _independent_rows(call: _Call) -> Outcome:
    z, n, softmax = call.logits, call.logits.shape[0], call.softmax
    logp, partials = z.new_empty(n, dtype=torch.float32), empty_partials(n, z)
    settings = (logp, None, partials, 0, softmax.scale, softmax.cap, *row_arguments(call.rows, call.config, n))
    gradient = None
    if call.over:
        # .data: the op must not count the overwriting, attach_gradients does.
        triton_grpo_rows_(z.data, call.token_ids, *settings, softmax.vocab_size)
    else:
        gradient = torch.empty_like(z, memory_format=torch.contiguous_format) if call.wanted else None
        triton_grpo_rows(z, gradient, call.token_ids, *settings, softmax.vocab_size)
    return *reduce_partials(partials), logp, gradient


def _dependent_rows(call: _Call) -> Outcome:
    """The logits are read a second time once the rows' gradients are known."""
    z, n, softmax = call.logits, call.logits.shape[0], call.softmax
    head = (softmax.scale, softmax.cap, softmax.vocab_size)
    logp, entropy, log2_sum = triton_logprob(z, call.token_ids, *head, call.rows.mask)
    a, partials = torch.empty_like(logp), empty_partials(n, z)
    b = torch.empty_like(logp) if call.config.entropy_coef else None
    settings = row_arguments(call.rows, call.config, n, entropy)
    triton_policy_rows(logp, entropy, a, b, partials, 0, call.rows.cu_seqlens.numel() - 1, *settings)
    gradient = None
    if call.over:
        triton_logprob_backward_(z.data, call.token_ids, log2_sum, entropy, a, b, *head)
    elif call.wanted:
        gradient = triton_logprob_backward(z, call.token_ids, log2_sum, entropy, a, b, *head)
    return *reduce_partials(partials), logp, gradient


def grpo_loss(logits: Tensor, token_ids: Tensor, rows: PolicyRows, config: GrpoConfig, inplace: bool) -> GrpoOutput:
    check_dtype("grpo_loss", logits)
    (wanted,) = needs_grad(logits)
    with torch.no_grad():
        z = separate_rows(logits.detach())
        # torch.compile has its own ways of saving memory, and no addresses.
        over = inplace and wanted and not torch.compiler.is_compiling() and z.data_ptr() == logits.data_ptr()
        call = _Call(z, token_ids.contiguous(), rows, config, softmax_spec(config), wanted, over)
        make = _independent_rows if coupling(rows, config) == "row" else _dependent_rows
        loss, metrics, logp, gradient = make(call)
    if wanted:
        grads = [logits.detach() if over else gradient]
        loss = attach_gradients("grpo_loss", loss, [logits], grads, scale_on_device)
    return GrpoOutput(loss, metrics, logp)
