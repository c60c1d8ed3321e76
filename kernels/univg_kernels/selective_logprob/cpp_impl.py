"""C++ face of `selective_logprob`: a registered op with fake and autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _library
from .._rows import math_dtype

_library.load()
ops = torch.ops.univg_kernels


def separate_rows(logits: Tensor) -> Tensor:
    """Logits as the C++ heads want them: columns contiguous, rows apart. A copy only where they are not."""
    n, v = logits.shape
    fits = (v == 1 or logits.stride(1) == 1) and (n <= 1 or logits.stride(0) >= v)
    return logits if fits else logits.contiguous()


def selective_logprob(logits: Tensor, token_ids: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    logp, entropy, _ = ops.logprob(separate_rows(logits), token_ids.long(), temperature)
    return logp, entropy


@torch.library.register_fake("univg_kernels::logprob")
def _(logits: Tensor, token_ids: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    n, dtype = logits.shape[0], math_dtype(logits)
    return tuple(logits.new_empty(n, dtype=dtype) for _ in range(3))  # type: ignore[return-value]


@torch.library.register_fake("univg_kernels::logprob_backward")
def _(
    logits: Tensor,
    token_ids: Tensor,
    lse: Tensor,
    entropy: Tensor,
    grad_logp: Tensor,
    grad_entropy: Tensor,
    temperature: float,
) -> Tensor:
    return logits.new_empty(logits.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, token_ids, ctx.temperature = inputs
    _, entropy, lse = output
    ctx.save_for_backward(logits, token_ids, lse, entropy)
    ctx.mark_non_differentiable(lse)


def _backward(ctx: Any, grad_logp: Tensor, grad_entropy: Tensor, _grad_lse: Tensor) -> tuple[Tensor, None, None]:
    saved = ctx.saved_tensors
    upstream = (grad_logp.contiguous(), grad_entropy.contiguous())
    return ops.logprob_backward(*saved, *upstream, ctx.temperature), None, None


torch.library.register_autograd("univg_kernels::logprob", _backward, setup_context=_setup_context)


@torch.library.register_fake("univg_kernels::logprob_backward_")
def _(logits: Tensor, *args: Any) -> None:
    return None
