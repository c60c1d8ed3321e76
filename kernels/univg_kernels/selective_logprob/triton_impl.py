"""Triton face of `selective_logprob`: one program per row, a registered op with fake and autograd."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._triton.launch import check_dtype, launch, row_launch
from .._triton.softmax import LN2, LOG2E, fill_zeros, load_tile, sweep_backward, sweep_forward


@triton.jit
def target_logit(row, target, V):
    """The logit of the target, fp32. Load it before anything overwrites the row; an id out of range gives NaN."""
    inside = (target >= 0) & (target < V)
    return tl.where(inside, tl.load(row + target, mask=inside, other=0.0).to(tl.float32), float("nan"))


@triton.jit
def log_probability(z, scale, top, log2_mass):
    """(z·scale - top) - log2_mass in nats: in this order no digit of a likely token is lost."""
    return (tl.fma(z, scale, -top) - log2_mass) * LN2


@triton.jit
def logprob_kernel(logits, stride, token_ids, logp, entropy, log2_sum, V, temperature,
                   LANES: tl.constexpr, VEC: tl.constexpr):  # fmt: skip
    n = tl.program_id(0)
    row = logits + n.to(tl.int64) * stride
    first = load_tile(row, 0, V, LANES, VEC)
    z = target_logit(row, tl.load(token_ids + n), V)
    scale = LOG2E / temperature
    top, log2_mass, h = sweep_forward(row, first, V, scale, LANES, VEC)
    tl.store(logp + n, log_probability(z, scale, top, log2_mass))
    tl.store(entropy + n, h)
    tl.store(log2_sum + n, top + log2_mass)


@triton.jit
def logprob_backward_kernel(logits, stride, gradient, gradient_stride, token_ids, log2_sum, entropy,
                            grad_logp, grad_entropy, V, temperature,
                            LANES: tl.constexpr, VEC: tl.constexpr):  # fmt: skip
    n = tl.program_id(0)
    row = logits + n.to(tl.int64) * stride
    out = gradient + n.to(tl.int64) * gradient_stride
    a, b = tl.load(grad_logp + n), tl.load(grad_entropy + n)
    if (a == 0.0) & (b == 0.0):
        fill_zeros(out, V, LANES, VEC)
    else:
        sweep_backward(
            row, out, tl.load(token_ids + n), V, LOG2E / temperature, tl.load(log2_sum + n),
            a, b, tl.load(entropy + n), temperature, True, LANES, VEC,
        )  # fmt: skip


def separate_rows(logits: Tensor) -> Tensor:
    """Logits as the heads want them: columns contiguous, rows apart. A copy only where they are not."""
    n, v = logits.shape
    fits = (v == 1 or logits.stride(1) == 1) and (n <= 1 or logits.stride(0) >= v)
    return logits if fits else logits.contiguous()


def _launch_backward(
    logits: Tensor, gradient: Tensor, token_ids: Tensor, log2_sum: Tensor, entropy: Tensor,
    grad_logp: Tensor, grad_entropy: Tensor, temperature: float,
) -> None:  # fmt: skip
    n, v = logits.shape
    launch(
        logprob_backward_kernel, n, logits, logits, logits.stride(0), gradient, gradient.stride(0),
        token_ids.contiguous(), log2_sum, entropy, grad_logp.contiguous(), grad_entropy.contiguous(), v, temperature,
        **row_launch(v, logits.element_size())._asdict(),
    )  # fmt: skip


def _empty_rows(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    a, b, c = (logits.new_empty(logits.shape[0], dtype=torch.float32) for _ in range(3))
    return a, b, c


@torch.library.custom_op("univg_kernels::triton_logprob", mutates_args=())
def triton_logprob(logits: Tensor, token_ids: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """(logp, entropy, log2 of the softmax's denominator), [N] fp32 each."""
    (n, v), z, out = logits.shape, separate_rows(logits), _empty_rows(logits)
    constants = row_launch(v, logits.element_size())._asdict()
    launch(logprob_kernel, n, z, z, z.stride(0), token_ids.contiguous(), *out, v, temperature, **constants)
    return out


@triton_logprob.register_fake
def _(logits: Tensor, token_ids: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_rows(logits)


@torch.library.custom_op("univg_kernels::triton_logprob_backward", mutates_args=())
def triton_logprob_backward(
    logits: Tensor, token_ids: Tensor, log2_sum: Tensor, entropy: Tensor,
    grad_logp: Tensor, grad_entropy: Tensor, temperature: float,
) -> Tensor:  # fmt: skip
    gradient = logits.new_empty(logits.shape)
    z = separate_rows(logits)
    _launch_backward(z, gradient, token_ids, log2_sum, entropy, grad_logp, grad_entropy, temperature)
    return gradient


@torch.library.custom_op("univg_kernels::triton_logprob_backward_", mutates_args=("logits",))
def triton_logprob_backward_(
    logits: Tensor, token_ids: Tensor, log2_sum: Tensor, entropy: Tensor,
    grad_logp: Tensor, grad_entropy: Tensor, temperature: float,
) -> None:  # fmt: skip
    """The same for a chunk with separate rows; the gradient takes the place of the logits."""
    _launch_backward(logits, logits, token_ids, log2_sum, entropy, grad_logp, grad_entropy, temperature)


@triton_logprob_backward.register_fake
def _(
    logits: Tensor, token_ids: Tensor, log2_sum: Tensor, entropy: Tensor,
    grad_logp: Tensor, grad_entropy: Tensor, temperature: float,
) -> Tensor:  # fmt: skip
    return logits.new_empty(logits.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, token_ids, ctx.temperature = inputs
    _, entropy, log2_sum = output
    ctx.save_for_backward(logits, token_ids, log2_sum, entropy)
    ctx.mark_non_differentiable(log2_sum)


def _backward(ctx: Any, grad_logp: Tensor, grad_entropy: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
    return triton_logprob_backward(*ctx.saved_tensors, grad_logp, grad_entropy, ctx.temperature), None, None


triton_logprob.register_autograd(_backward, setup_context=_setup_context)


def selective_logprob(logits: Tensor, token_ids: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    check_dtype("selective_logprob", logits)
    logp, entropy, _ = triton_logprob(logits, token_ids, temperature)
    return logp, entropy
