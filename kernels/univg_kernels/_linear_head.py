"""The linear head: hidden states to a loss and its gradients, one chunk of logits at a time.

The one loop of `linear_grpo_loss`, `linear_ce` and `linear_logprob`; what a row of logits is worth, its callback knows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

RowHead = Callable[[Tensor, int, int], Tensor | None]
"""(logits [stop - start, V], start, stop): score these rows. Where gradients are wanted, overwrite the logits with
d loss/d logits (zeros for a row without one) and return which rows have one, bool [stop - start], or None for all."""


class ReferenceHead(NamedTuple):
    """The reference policy, not differentiated: hidden [N, H'], weight [V, H'], bias [V] or None."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None


class LinearPolicy(NamedTuple):
    """The checked inputs of `linear_grpo_loss`: hidden [N, H], weight [V, H], bias [V] or None, token_ids [N]."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    token_ids: Tensor
    reference: ReferenceHead | None
    weight_grad: Tensor | None  # [V, H]: takes the weight's gradient


class _IntoWeightGrad(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, weight_grad: Tensor) -> Tensor:
        ctx.weight_grad = weight_grad
        return weight.view_as(weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None]:
        ctx.weight_grad.add_(grad)
        return None, None


def into_weight_grad(weight: Tensor, weight_grad: Tensor | None) -> Tensor:
    """`weight`, whose gradient is added to `weight_grad` where that is given. For the reference faces."""
    return weight if weight_grad is None else _IntoWeightGrad.apply(weight, weight_grad)


class LinearGrads(NamedTuple):
    hidden: Tensor | None  # [N, H]
    weight: Tensor | None  # [V, H]
    bias: Tensor | None  # [V]


def default_chunk_rows(num_rows: int, vocab: int) -> int:
    """Rows of logits held at a time: a tenth of all, but not fewer than keep the products efficient (each chunk
    reads and writes the whole weight gradient), nor more than help. A small vocabulary needs no chunks."""
    return max(min(2048, max(256, num_rows // 10)), 2**23 // vocab)


def run_linear_head(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    row_head: RowHead,
    needs: tuple[bool, ...],
    *,
    chunk_rows: int | None = None,
) -> LinearGrads:
    """Make the logits of `hidden` [N, H] chunk by chunk, let `row_head` score them, and gather the gradients.

    needs: which gradients to make (hidden, weight, bias). Active rows wait at the top of the buffer until it is
    nearly full of them, so that the backward products are as tall as the forward ones however few rows are active.
    Asking which rows are active waits for the device; a `row_head` that returns None avoids it.
    """
    hidden, weight = hidden.detach(), weight.detach()
    n = hidden.shape[0]
    chunk = min(chunk_rows or default_chunk_rows(n, weight.shape[0]), max(n, 1))
    logits = hidden.new_empty(chunk, weight.shape[0])
    sums = _GradientSums(hidden, weight, bias, needs, several=chunk < n)
    waiting: list[Tensor] = []  # numbers of the rows at the top of the buffer
    start = held = 0
    while start < n:
        stop = min(start + chunk - held, n)
        z, h = logits[held : held + stop - start], hidden[start:stop]
        if bias is None:
            torch.mm(h, weight.t(), out=z)
        else:
            torch.addmm(bias.detach(), h, weight.t(), out=z)
        active = row_head(z, start, stop)
        if any(needs):
            waiting.append(_keep(z, active) + start)
            held += waiting[-1].numel()
            if stop == n or held > 0.75 * chunk:
                sums.add(logits[:held], torch.cat(waiting))
                waiting, held = [], 0
        start = stop
    return sums.result()


def _keep(z: Tensor, active: Tensor | None) -> Tensor:
    """Move the active rows of z to its top, without a second buffer; give their numbers."""
    if active is None or torch.compiler.is_compiling():  # which cannot follow shapes that depend on values
        return torch.arange(z.shape[0], device=z.device)
    index = active.nonzero()[:, 0]
    for target, source in enumerate(index.tolist()):
        if target != source:
            z[target].copy_(z[source])
    return index


class _GradientSums:
    """The gradients, from rows of d loss/d logits as they come."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, needs: tuple[bool, ...], several: bool):
        self.inputs = hidden, weight
        self.hidden = torch.zeros_like(hidden) if needs[0] else None
        self.weight = _Sum(weight, several) if needs[1] else None
        self.bias = _Sum(bias.detach(), several) if needs[2] and bias is not None else None

    def add(self, z: Tensor, rows: Tensor) -> None:
        """z: [k, V] gradient of the logits of `rows` [k]."""
        if not rows.numel():
            return
        hidden, weight = self.inputs
        if self.hidden is not None:
            self.hidden[rows] = torch.mm(z, weight)
        if self.weight is not None:
            self.weight.add_product(z.t(), hidden[rows])
        if self.bias is not None:
            self.bias.add(z.sum(0, dtype=self.bias.total.dtype))

    def result(self) -> LinearGrads:
        weight, bias = (None if s is None else s.result() for s in (self.weight, self.bias))
        return LinearGrads(self.hidden, weight, bias)


class _Sum:
    """Sum over chunks of a gradient shaped like `like`. Half precision is summed in fp32: rounding at every chunk
    would lose what the later chunks add."""

    BLOCK = 16384  # rows of one product into the fp32 sum: bounds the temporary

    def __init__(self, like: Tensor, several: bool):
        self.dtype = like.dtype
        wide = torch.float32 if several and like.dtype.itemsize < 4 else like.dtype
        self.total = torch.empty_like(like, dtype=wide, memory_format=torch.contiguous_format)
        self.empty = True

    def add(self, x: Tensor) -> None:
        self.total.copy_(x) if self.empty else self.total.add_(x)
        self.empty = False

    def add_product(self, a: Tensor, b: Tensor) -> None:
        if self.total.dtype == self.dtype:
            torch.addmm(self.total, a, b, beta=0 if self.empty else 1, out=self.total)
        else:
            for start in range(0, a.shape[0], self.BLOCK):
                part = self.total[start : start + self.BLOCK]
                product = torch.mm(a[start : start + self.BLOCK], b)
                part.copy_(product) if self.empty else part.add_(product)
        self.empty = False

    def result(self) -> Tensor:
        if self.empty:
            self.total.zero_()
        return self.total.to(self.dtype)
