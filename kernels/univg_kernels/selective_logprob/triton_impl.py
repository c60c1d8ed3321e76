"""Triton face of `selective_logprob`: one program per row, a registered op with fake and autograd."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._softmax import SoftmaxSpec, separate_rows
from .._triton.launch import check_dtype, launch, row_launch
from .._triton.softmax import fill_zeros, load_tile, log_probability, sweep_backward, sweep_forward, target_logit


@triton.jit
def logprob_kernel(logits, stride, token_ids, mask, logp, entropy, log2_sum, V, vocab, scale, cap,
                   LANES: tl.constexpr, VEC: tl.constexpr):  # fmt: skip
    n = tl.program_id(0)
    row = logits + n.to(tl.int64) * stride
    keep = n >= 0
    if mask is not None:
        keep = tl.load(mask + n) != 0
    if keep:
        first = load_tile(row, 0, V, LANES, VEC)
        z = target_logit(row, tl.load(token_ids + n), V, vocab)
        top, log2_mass, h = sweep_forward(row, first, V, vocab, scale, cap, LANES, VEC)
        tl.store(logp + n, log_probability(z, scale, cap, top, log2_mass))
        tl.store(entropy + n, h)
        tl.store(log2_sum + n, top.to(tl.float64) + log2_mass.to(tl.float64))
    else:
        tl.store(logp + n, 0.0)
        tl.store(entropy + n, 0.0)
        tl.store(log2_sum + n, 0.0)


@triton.jit
def logprob_backward_kernel(logits, stride, gradient, gradient_stride, token_ids, log2_sum, entropy,
                            grad_logp, grad_entropy, V, vocab, scale, cap,
                            LANES: tl.constexpr, VEC: tl.constexpr):  # fmt: skip
    HAS_B: tl.constexpr = grad_entropy is not None
    n = tl.program_id(0)
    row = logits + n.to(tl.int64) * stride
    out = gradient + n.to(tl.int64) * gradient_stride
    a = tl.load(grad_logp + n)
    b = tl.zeros_like(a)
    if HAS_B:
        b = tl.load(grad_entropy + n)
    if (a == 0.0) & (b == 0.0):
        fill_zeros(out, V, LANES, VEC)
    else:
        whole = tl.load(log2_sum + n).to(tl.float64)
        top = whole.to(tl.float32)
        rest = (whole - top.to(tl.float64)).to(tl.float32)
        sweep_backward(
            row, out, tl.load(token_ids + n), V, vocab, scale, cap, top, rest, a, b, tl.load(entropy + n), HAS_B,
            LANES, VEC,
        )  # fmt: skip


def columns_that_exist(columns: int, vocab_size: int | None) -> int | None:
    """`vocab` of the sweeps: None where there is no padding, which spares them the comparison."""
    return None if vocab_size in (None, columns) else vocab_size


def _launch_backward(
    logits: Tensor, gradient: Tensor, token_ids: Tensor, log2_sum: Tensor, entropy: Tensor,
    grad_logp: Tensor, grad_entropy: Tensor | None, scale: float, cap: float, vocab_size: int | None,
) -> None:  # fmt: skip
    n, v = logits.shape
    launch(
        logprob_backward_kernel, n, logits, logits, logits.stride(0), gradient, gradient.stride(0),
        token_ids.contiguous(), log2_sum, entropy, grad_logp.contiguous(),
        None if grad_entropy is None else grad_entropy.contiguous(), v, columns_that_exist(v, vocab_size),
        scale, cap or None, **row_launch(v, logits.element_size())._asdict(),
    )  # fmt: skip


def _empty_rows(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """logp, entropy, log2_sum. The last is a large number whose every digit tells in the gradient, hence fp64."""
    n, kinds = logits.shape[0], (torch.float32, torch.float32, torch.float64)
    logp, entropy, log2_sum = (logits.new_empty(n, dtype=kind) for kind in kinds)
    return logp, entropy, log2_sum


@torch.library.custom_op("univg_kernels::triton_logprob", mutates_args=())
def triton_logprob(
    logits: Tensor, token_ids: Tensor, scale: float, cap: float, vocab_size: int | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(logp, entropy, log2 of the softmax's denominator), [N] fp32, fp32, fp64; 0 in rows that `mask` keeps unread."""
    (n, v), z, out = logits.shape, separate_rows(logits), _empty_rows(logits)
    launch(
        logprob_kernel, n, z, z, z.stride(0), token_ids.contiguous(), None if mask is None else mask.contiguous(),
        *out, v, columns_that_exist(v, vocab_size), scale, cap or None,
        **row_launch(v, logits.element_size())._asdict(),
    )  # fmt: skip
    return out


@triton_logprob.register_fake
def _(
    logits: Tensor, token_ids: Tensor, scale: float, cap: float, vocab_size: int | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return _empty_rows(logits)


@torch.library.custom_op("univg_kernels::triton_logprob_backward", mutates_args=())
def triton_logprob_backward(
    logits: Tensor, token_ids: Tensor, log2_sum: Tensor, entropy: Tensor, grad_logp: Tensor,
    grad_entropy: Tensor | None, scale: float, cap: float, vocab_size: int | None = None,
) -> Tensor:  # fmt: skip
    """Rows whose two gradients are 0 are not read."""
    gradient, z = logits.new_empty(logits.shape), separate_rows(logits)
    _launch_backward(
        z, gradient, token_ids, log2_sum, entropy, grad_logp, grad_entropy, scale, cap, vocab_size
    )  # fmt: skip
    return gradient


@torch.library.custom_op("univg_kernels::triton_logprob_backward_", mutates_args=("logits",))
def triton_logprob_backward_(
    logits: Tensor, token_ids: Tensor, log2_sum: Tensor, entropy: Tensor, grad_logp: Tensor,
    grad_entropy: Tensor | None, scale: float, cap: float, vocab_size: int | None = None,
) -> None:  # fmt: skip
    """The same for a chunk with separate rows; the gradient takes the place of the logits."""
    _launch_backward(
        logits, logits, token_ids, log2_sum, entropy, grad_logp, grad_entropy, scale, cap, vocab_size
    )  # fmt: skip


@triton_logprob_backward.register_fake
def _(
    logits: Tensor, token_ids: Tensor, log2_sum: Tensor, entropy: Tensor, grad_logp: Tensor,
    grad_entropy: Tensor | None, scale: float, cap: float, vocab_size: int | None = None,
) -> Tensor:  # fmt: skip
    return logits.new_empty(logits.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, token_ids, *ctx.head, _ = inputs
    _, entropy, log2_sum = output
    ctx.save_for_backward(logits, token_ids, log2_sum, entropy)
    ctx.mark_non_differentiable(log2_sum)


def _backward(ctx: Any, grad_logp: Tensor, grad_entropy: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    gradient = triton_logprob_backward(*ctx.saved_tensors, grad_logp, grad_entropy, *ctx.head)
    return gradient, None, None, None, None, None


triton_logprob.register_autograd(_backward, setup_context=_setup_context)


def selective_logprob(logits: Tensor, token_ids: Tensor, softmax: SoftmaxSpec) -> tuple[Tensor, Tensor]:
    check_dtype("selective_logprob", logits)
    logp, entropy, _ = triton_logprob(logits, token_ids, softmax.scale, softmax.cap, softmax.vocab_size)
    return logp, entropy
