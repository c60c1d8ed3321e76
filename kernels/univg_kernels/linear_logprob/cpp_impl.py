"""C++ face of `linear_logprob`: the logits are made once forward and once more backward, chunk by chunk."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _library
from .._linear_head import run_linear_head
from .._rows import math_dtype

_library.load()
ops = torch.ops.univg_kernels


class _LinearLogprob(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        logp, entropy, lse = hidden.new_empty(3, hidden.shape[0], dtype=math_dtype(hidden)).unbind(0)

        def score(z: Tensor, start: int, stop: int) -> None:
            part = slice(start, stop)
            logp[part], entropy[part], lse[part] = ops.logprob(z, ids[part], temperature)

        run_linear_head(hidden, weight, bias, score, (False, False, False))
        ctx.save_for_backward(hidden, weight, bias, ids, lse, entropy)
        ctx.temperature = temperature
        return logp.clone(), entropy.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_logp: Tensor, grad_entropy: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, ids, lse, entropy = ctx.saved_tensors
        a, b = grad_logp.contiguous(), grad_entropy.contiguous()

        def score(z: Tensor, start: int, stop: int) -> Tensor:
            part = slice(start, stop)
            ops.logprob_backward_(z, *(t[part] for t in (ids, lse, entropy, a, b)), ctx.temperature)
            return (a[part] != 0) | (b[part] != 0)

        return (*run_linear_head(hidden, weight, bias, score, ctx.needs_input_grad[:3]), None, None)


def linear_logprob(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, token_ids: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    return _LinearLogprob.apply(hidden, weight, bias, token_ids.long(), temperature)
