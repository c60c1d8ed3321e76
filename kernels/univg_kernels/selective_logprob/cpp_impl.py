"""C++ face of `selective_logprob`: a registered op with fake and autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import _library
from .._rows import math_dtype
from .._softmax import SoftmaxSpec, separate_rows

_library.load()
ops = torch.ops.univg_kernels


def selective_logprob(logits: Tensor, token_ids: Tensor, softmax: SoftmaxSpec) -> tuple[Tensor, Tensor]:
    z = separate_rows(logits[:, : softmax.vocab_size])
    logp, entropy, _ = ops.logprob(z, token_ids.long(), softmax.scale, softmax.cap)
    return logp, entropy


@torch.library.register_fake("univg_kernels::logprob")
def _(
    logits: Tensor, token_ids: Tensor, scale: float, cap: float, mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    n, dtype = logits.shape[0], math_dtype(logits)
    logp, entropy = (logits.new_empty(n, dtype=dtype) for _ in range(2))
    return logp, entropy, logits.new_empty(n, dtype=torch.float64)


@torch.library.register_fake("univg_kernels::logprob_backward")
def _(logits: Tensor, *args: Any) -> Tensor:
    return logits.new_empty(logits.shape)


@torch.library.register_fake("univg_kernels::logprob_backward_")
def _(logits: Tensor, *args: Any) -> None:
    return None


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, token_ids, ctx.scale, ctx.cap, mask = inputs
    _, entropy, lse = output
    ctx.save_for_backward(mask, logits, token_ids, lse, entropy)
    ctx.mark_non_differentiable(lse)
    ctx.set_materialize_grads(False)


@once_differentiable
def _backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    mask, *saved = ctx.saved_tensors
    entropy = saved[-1]
    upstream = [torch.zeros_like(entropy) if g is None else g.contiguous() for g in grads[:2]]  # by logp, entropy
    if mask is not None:
        upstream = [torch.where(mask, g, 0.0) for g in upstream]
    return ops.logprob_backward(*saved, *upstream, ctx.scale, ctx.cap), None, None, None, None


torch.library.register_autograd("univg_kernels::logprob", _backward, setup_context=_setup_context)
