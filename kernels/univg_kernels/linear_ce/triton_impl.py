"""Triton face of `linear_ce`: torch's products around the cross-entropy row kernel, a = -weight."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._linear_forward import Statistics
from .._linear_head import Head, Rows
from .._linear_losses import linear_cross_entropy
from .._softmax import SoftmaxSpec
from .._triton.compact import skipping_on_device
from .._triton.launch import check_dtype, launch, row_launch
from .._triton.scale import scale_on_device
from .._triton.softmax import fill_zeros, load_tile, log_probability, sweep_backward, sweep_forward, target_logit
from ..linear_logprob.triton_impl import forward_on_device


@triton.jit
def ce_rows_kernel(logits, stride, token_ids, row_weight, logp, V, scale, cap,
                   LANES: tl.constexpr, VEC: tl.constexpr):  # fmt: skip
    """logp of each row, whose logits become their gradient."""
    n = tl.program_id(0)
    row = logits + n.to(tl.int64) * stride
    first = load_tile(row, 0, V, LANES, VEC)
    target = tl.load(token_ids + n)
    z = target_logit(row, target, V, None)
    weight = tl.load(row_weight + n)
    top, log2_mass, entropy = sweep_forward(row, first, V, None, scale, cap, LANES, VEC)
    tl.store(logp + n, log_probability(z, scale, cap, top, log2_mass))
    if weight == 0.0:
        fill_zeros(row, V, LANES, VEC)
    else:
        sweep_backward(
            row, row, target, V, None, scale, cap, top, log2_mass, -weight, 0.0, entropy, False, LANES, VEC
        )  # fmt: skip


@torch.library.custom_op("univg_kernels::triton_ce_rows_", mutates_args=("logits",))
def triton_ce_rows_(logits: Tensor, token_ids: Tensor, row_weight: Tensor, scale: float, cap: float) -> Tensor:
    n, v = logits.shape
    logp = logits.new_empty(n, dtype=torch.float32)
    launch(
        ce_rows_kernel, n, logits, logits, logits.stride(0), token_ids, row_weight, logp, v, scale, cap or None,
        **row_launch(v, logits.element_size())._asdict(),
    )  # fmt: skip
    return logp


@triton_ce_rows_.register_fake
def _(logits: Tensor, token_ids: Tensor, row_weight: Tensor, scale: float, cap: float) -> Tensor:
    return logits.new_empty(logits.shape[0], dtype=torch.float32)


def linear_ce(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    token_ids: Tensor,
    row_weight: Tensor | float,
    softmax: SoftmaxSpec,
    weight_grad: Tensor | None,
) -> tuple[Tensor, Tensor]:
    check_dtype("linear_ce", hidden)
    ids, settings = token_ids.contiguous(), (softmax.scale, softmax.cap)

    def forward(head: Head) -> Statistics:
        return forward_on_device(head, ids, *settings)

    def gradient_(z: Tensor, part: Rows, weights: Tensor) -> Tensor:
        return triton_ce_rows_(z, ids[part], weights, *settings)

    skipping = skipping_on_device(hidden)
    return linear_cross_entropy(
        hidden, weight, bias, row_weight, softmax.vocab_size, weight_grad, forward, gradient_, skipping, scale_on_device
    )
