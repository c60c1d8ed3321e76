"""Triton face of `policy_loss`: one program per response, for rows that depend on each other or not."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._autograd import attach_gradients, needs_grad
from .._rows import GrpoOutput, PolicyRows
from .._triton.launch import check_dtype, launch
from .._triton.partials import empty_partials, reduce_partials, store_partials
from .._triton.response_sums import BLOCK, known_response, load_rows
from .._triton.responses import advantage_and_phi, row_weights
from .._triton.row_program import known_rows, loss_row
from .._triton.rows import SCHEMA, kernel_arguments, row_arguments
from ..config import GrpoConfig

WARPS = 4


@triton.jit(do_not_specialize=["N", "response_start", "num_groups"])
def policy_rows_kernel(logp, entropy, a_out, b_out, partials, N, response_start, rows, num_groups, numbers,
                       BRANCHES: tl.constexpr):  # fmt: skip
    """Response response_start + program: its rows [cu_seqlens[response], cu_seqlens[response + 1])."""
    response = response_start + tl.program_id(0)
    advantage_all, phi = advantage_and_phi(response, rows, num_groups, numbers, BRANCHES)
    begin, end = tl.load(rows.cu_seqlens + response), tl.load(rows.cu_seqlens + response + 1)
    length, mean, importance_all, policy_factor, drift, vespo_log_weight, gmpo_mean, gmpo_rows = known_response(
        response, begin, end, logp, entropy, advantage_all, rows, numbers, BRANCHES
    )
    weight, entropy_weight = row_weights(length, rows, numbers, BRANCHES)
    shared_sum = tl.zeros([BLOCK], tl.float32)
    for start in range(begin, end, BLOCK):
        n, inside, keep, lp, h = load_rows(start, end, logp, entropy, rows)
        zero = tl.zeros_like(lp)
        advantage, difference, ref, importance, sampling_difference, _, high_entropy = known_rows(
            n, keep, lp, h, advantage_all, rows, numbers, BRANCHES
        )
        importance *= importance_all
        gate = importance * high_entropy
        if BRANCHES.loss_type == "vespo":  # has the ratio in its weight
            gate = high_entropy
        if BRANCHES.loss_type == "gmpo":  # a geometric mean; the entropy mask is in the mean of the log-ratio
            gate = zero + policy_factor
        if BRANCHES.off_policy_mask:
            allowed = (advantage >= 0) | (zero + drift <= numbers.off_policy_mask_threshold)
            gate = tl.where(allowed, gate, gate * 0)
        log_ratio = difference
        if BRANCHES.level != "token":
            log_ratio = zero + mean
        loss, a, shared, kl, ratio, low, high = loss_row(
            lp, difference, log_ratio, ref, advantage, phi, weight, importance, gate, vespo_log_weight, gmpo_mean,
            numbers, BRANCHES,
        )  # fmt: skip
        shared_sum += tl.where(keep, shared, zero)
        b = zero
        if BRANCHES.bonus != "none":
            b = tl.where(keep, -entropy_weight * high_entropy, zero)
            loss += b * h
        tl.store(a_out + n, tl.where(keep, a, zero), mask=inside)
        if b_out is not None:
            tl.store(b_out + n, b, mask=inside)
        store_partials(
            partials, N, n, tl.where(keep, loss, zero), keep.to(tl.float32), tl.where(keep, kl, zero), h,
            tl.where(keep, low, zero), tl.where(keep, high, zero), tl.where(keep, ratio, zero),
            tl.where(keep, importance, zero), (keep & (gate == 0)).to(tl.float32), tl.abs(difference),
            tl.abs(sampling_difference), inside,
        )  # fmt: skip
    if BRANCHES.level == "sequence" or BRANCHES.loss_type == "gmpo":
        # What the response shares, its rows get their parts of. The barrier makes the stores above readable.
        tl.debug_barrier()
        total = tl.sum(shared_sum, axis=0)
        for start in range(begin, end, BLOCK):
            n, inside, keep, lp, h = load_rows(start, end, logp, entropy, rows)
            advantage, difference, _, _, _, _, high_entropy = known_rows(
                n, keep, lp, h, advantage_all, rows, numbers, BRANCHES
            )
            part = tl.zeros_like(lp) + total / tl.maximum(length, 1.0)
            if BRANCHES.loss_type == "gmpo":
                over, under = difference > numbers.epsilon_high, difference < -numbers.epsilon_low
                stopped = tl.where(advantage > 0, over, under)
                part = tl.where(stopped, 0.0, high_entropy * total / tl.maximum(gmpo_rows, 1.0))
            a = tl.load(a_out + n, mask=inside, other=0.0) + tl.where(keep, part, 0.0)
            tl.store(a_out + n, a, mask=inside)


@torch.library.custom_op(
    "univg_kernels::triton_policy_rows",
    mutates_args=("a", "b", "partials"),
    schema="(Tensor logp, Tensor? entropy, Tensor(a!) a, Tensor(b!)? b, Tensor(c!) partials, int response_start, "
    f"int num_responses, {SCHEMA}) -> ()",
)
def triton_policy_rows(
    logp: Tensor, entropy: Tensor | None, a: Tensor, b: Tensor | None, partials: Tensor, response_start: int,
    num_responses: int, tensors: Sequence[Tensor | None], numbers: Sequence[float], choices: Sequence[str],
    flags: Sequence[bool],
) -> None:  # fmt: skip
    """Loss and gradient of the responses [response_start, response_start + num_responses), for any `coupling`.

    Read are logp [N] and entropy [N], of any dtype; written, at the rows of these responses, are a = dL/dlogp [N] and
    b = dL/dH [N] (None where nobody asks), fp32, and partials [_, N].
    """
    launch(
        policy_rows_kernel, num_responses, logp, logp, entropy, a, b, partials, logp.numel(), response_start,
        **kernel_arguments(tensors, numbers, choices, flags), num_warps=WARPS,
    )  # fmt: skip


Outcome = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]  # loss, metrics, a, b, logp


@torch.no_grad()
def _forward(logp: Tensor, entropy: Tensor | None, rows: PolicyRows, config: GrpoConfig) -> Outcome:
    lp, h = logp.detach().contiguous(), None if entropy is None else entropy.detach().contiguous()
    a = torch.empty_like(lp, dtype=torch.float32)
    b = torch.empty_like(a) if config.entropy_coef else None
    partials = empty_partials(lp.numel(), lp)
    settings = row_arguments(rows, config, lp.numel(), h)
    triton_policy_rows(lp, h, a, b, partials, 0, rows.cu_seqlens.numel() - 1, *settings)
    out = lp.to(torch.float32, copy=True) if rows.mask is None else torch.where(rows.mask, lp.float(), 0.0)
    return *reduce_partials(partials), a, b, out


def policy_loss(logp: Tensor, entropy: Tensor | None, rows: PolicyRows, config: GrpoConfig) -> GrpoOutput:
    check_dtype("policy_loss", logp)
    loss, metrics, a, b, out = _forward(logp, entropy, rows, config)
    inputs = [logp] if b is None else [logp, entropy]
    if any(needs_grad(*inputs)):
        grads = [g.to(x.dtype) for x, g in zip(inputs, (a, b), strict=False) if x is not None and g is not None]
        loss = attach_gradients("policy_loss", loss, inputs, grads, reusable=True)
    return GrpoOutput(loss, metrics, out)
