"""Triton face of `linear_logprob`: the logits are made once forward and once more backward, chunk by chunk."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._linear_head import run_linear_head
from .._triton.launch import check_dtype
from ..selective_logprob.triton_impl import triton_logprob, triton_logprob_backward_


class _LinearLogprob(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        logp, entropy, log2_sum = (hidden.new_empty(hidden.shape[0], dtype=torch.float32) for _ in range(3))

        def score(z: Tensor, start: int, stop: int) -> None:
            part = slice(start, stop)
            logp[part], entropy[part], log2_sum[part] = triton_logprob(z, ids[part], temperature)

        run_linear_head(hidden, weight, bias, score, (False, False, False))
        ctx.save_for_backward(hidden, weight, bias, ids, log2_sum, entropy)
        ctx.temperature = temperature
        return logp, entropy

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_logp: Tensor, grad_entropy: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, ids, log2_sum, entropy = ctx.saved_tensors
        a, b = grad_logp.contiguous(), grad_entropy.contiguous()

        def score(z: Tensor, start: int, stop: int) -> None:
            part = slice(start, stop)
            triton_logprob_backward_(z, ids[part], log2_sum[part], entropy[part], a[part], b[part], ctx.temperature)

        return (*run_linear_head(hidden, weight, bias, score, ctx.needs_input_grad[:3]), None, None)


def linear_logprob(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, token_ids: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    check_dtype("linear_logprob", hidden)
    return _LinearLogprob.apply(hidden, weight, bias, token_ids.contiguous(), temperature)
