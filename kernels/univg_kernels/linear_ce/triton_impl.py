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
from ..selective_logprob.triton_impl import log_probability, target_logit, triton_logprob


@triton.jit
def ce_rows_kernel(logits, stride, token_ids, row_weight, logp, V,
                   LANES: tl.constexpr, VEC: tl.constexpr):  # fmt: skip
    """logp of each row, whose logits become their gradient."""
    n = tl.program_id(0)
    row = logits + n.to(tl.int64) * stride
    first = load_tile(row, 0, V, LANES, VEC)
    target = tl.load(token_ids + n)
    z = target_logit(row, target, V)
    weight = tl.load(row_weight + n)
    top, log2_mass, entropy = sweep_forward(row, first, V, LOG2E, LANES, VEC)
    tl.store(logp + n, log_probability(z, LOG2E, top, log2_mass))
    if weight == 0.0:
        fill_zeros(row, V, LANES, VEC)
    else:
        sweep_backward(row, row, target, V, LOG2E, top + log2_mass, -weight, 0.0, entropy, 1.0, False, LANES, VEC)


@torch.library.custom_op("univg_kernels::triton_ce_rows_", mutates_args=("logits",))
def triton_ce_rows_(logits: Tensor, token_ids: Tensor, row_weight: Tensor) -> Tensor:
    n, v = logits.shape
    logp = logits.new_empty(n, dtype=torch.float32)
    launch(
        ce_rows_kernel, n, logits, logits, logits.stride(0), token_ids, row_weight, logp, v,
        **row_launch(v, logits.element_size())._asdict(),
    )  # fmt: skip
    return logp


@triton_ce_rows_.register_fake
def _(logits: Tensor, token_ids: Tensor, row_weight: Tensor) -> Tensor:
    return logits.new_empty(logits.shape[0], dtype=torch.float32)


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
            if any(needs):
                logp[part] = triton_ce_rows_(z, ids[part], rw[part])
            else:
                logp[part] = triton_logprob(z, ids[part], 1.0)[0]

        grads = run_linear_head(hidden, weight, bias, score, needs)
        # A weight of 0 switches a row off, whatever its logits are.
        loss = -torch.where(rw != 0, rw * logp, 0.0).sum()
    if any(needs):
        loss = attach_gradients("linear_ce", loss, inputs, grads, scale_on_device)
    return loss, logp
