"""Triton face of `linear_ce`: torch's products around the cross-entropy row kernel, a = -weight."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._autograd import attach_gradients, needs_grad
from .._linear_head import run_linear_head
from .._triton.launch import check_dtype, launch, row_launch
from .._triton.scale import scale_on_device
from .._triton.softmax import LOG2E, fill_zeros, load_tile, sweep_backward, sweep_forward
from ..selective_logprob.triton_impl import log_probability, target_logit


@triton.jit
def ce_rows_kernel(logits, stride, token_ids, row_weight, logp, V, WANT_GRAD: tl.constexpr,
                   LANES: tl.constexpr, VEC: tl.constexpr):  # fmt: skip
    """logp of each row; with WANT_GRAD its logits become its gradient."""
    n = tl.program_id(0)
    row = logits + n.to(tl.int64) * stride
    first = load_tile(row, 0, V, LANES, VEC)
    target = tl.load(token_ids + n)
    z = target_logit(row, target, V)
    weight = tl.load(row_weight + n)
    top, log2_mass, entropy = sweep_forward(row, first, V, LOG2E, LANES, VEC)
    tl.store(logp + n, log_probability(z, LOG2E, top, log2_mass))
    if WANT_GRAD:
        if weight == 0.0:
            fill_zeros(row, V, LANES, VEC)
        else:
            sweep_backward(row, row, target, V, LOG2E, top + log2_mass, -weight, 0.0, entropy, 1.0, False, LANES, VEC)


def linear_ce(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, token_ids: Tensor, row_weight: Tensor
) -> tuple[Tensor, Tensor]:
    check_dtype("linear_ce", hidden)
    inputs = (hidden, weight, bias)
    needs = needs_grad(*inputs)
    with torch.no_grad():
        ids, rw = token_ids.contiguous(), row_weight.float().contiguous()
        logp = hidden.new_empty(hidden.shape[0], dtype=torch.float32)

        def score(z: Tensor, start: int, stop: int) -> None:
            part = slice(start, stop)
            launch(
                ce_rows_kernel, z.shape[0], z, z, z.stride(0), ids[part], rw[part], logp[part], z.shape[1],
                WANT_GRAD=any(needs), **row_launch(z.shape[1], z.element_size())._asdict(),
            )  # fmt: skip

        grads = run_linear_head(hidden, weight, bias, score, needs)
        # A weight of 0 switches a row off, whatever its logits are.
        loss = -torch.where(rw != 0, rw * logp, 0.0).sum()
    if any(needs):
        loss = attach_gradients("linear_ce", loss, inputs, grads, scale_on_device)
    return loss, logp
