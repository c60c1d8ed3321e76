"""The linear head: hidden states and weight to logits, some rows at a time. Its nouns, and its products."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Rows = slice | Tensor
"""Which rows: slice(start, stop), or their numbers, ascending."""


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


def takes_gradient(weight: Tensor, weight_grad: Tensor | None) -> Tensor:
    """A stand-in for a frozen weight whose gradient is asked for by `weight_grad`: it makes the loss differentiable."""
    frozen = weight_grad is not None and torch.is_grad_enabled() and not weight.requires_grad
    return weight.detach().requires_grad_() if frozen and not torch.compiler.is_compiling() else weight


def into_weight_grad(weight: Tensor, weight_grad: Tensor | None) -> Tensor:
    """`weight`, whose gradient is added to `weight_grad` where that is given. For the reference faces."""
    return weight if weight_grad is None else _IntoWeightGrad.apply(takes_gradient(weight, weight_grad), weight_grad)


class Head(NamedTuple):
    """hidden [N, H], weight [V, H] of the columns that exist, bias [V] or None; no gradients."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None

    def of(self, rows: Rows) -> Head:
        return self._replace(hidden=self.hidden[rows])

    def columns(self, part: slice) -> Head:
        return self._replace(weight=self.weight[part], bias=None if self.bias is None else self.bias[part])

    def buffer(self, rows: int) -> Tensor:
        """For that many rows of logits, which begin at multiples of 16 bytes. What lies between them is 0: torch's bf16
        product on the CPU multiplies it by 0."""
        vocab, align = self.weight.shape[0], 16 // self.hidden.element_size()
        wide = self.hidden.new_empty(rows, -(-vocab // align) * align)
        wide[:, vocab:].zero_()
        return wide[:, :vocab]

    def logits(self, out: Tensor, rows: Rows) -> Tensor:
        """The logits of `rows`, in `out` (torch.compile allocates for itself)."""
        h = self.hidden[rows]
        if torch.compiler.is_compiling():
            return F.linear(h, self.weight, self.bias)
        if self.bias is None:
            return torch.mm(h, self.weight.t(), out=out)
        return torch.addmm(self.bias, h, self.weight.t(), out=out)

    def first_logits(self, rows: Tensor, count: Tensor | None) -> Tensor:
        """The logits, before the bias, of the first `count` [1] int32 of `rows`; those of the others hold anything."""
        return active_rows_product(self.hidden[rows], self.weight.t(), None if count is None else count.clamp(min=1))


def make_head(hidden: Tensor, weight: Tensor, bias: Tensor | None, vocab_size: int | None) -> Head:
    return Head(hidden.detach(), weight.detach()[:vocab_size], None if bias is None else bias.detach()[:vocab_size])


def default_chunk_rows(num_rows: int, vocab: int) -> int:
    """Rows of logits held at a time: a tenth of all, but not fewer than keep the products efficient (each chunk
    reads and writes the whole weight gradient), nor more than help. A small vocabulary needs no chunks."""
    return max(min(2048, max(256, num_rows // 10)), 2**23 // vocab)


def chunk_rows(head: Head) -> int:
    """As many as `default_chunk_rows` says. On CUDA, where the products of a chunk are short beside the passes over the
    weight's fp32 gradient that each chunk adds, more: 8 bytes of traffic per weight against 6·rows flops (by counting;
    not yet measured)."""
    n, vocab = head.hidden.shape[0], head.weight.shape[0]
    rows = 4096 if head.hidden.is_cuda else default_chunk_rows(n, vocab)
    return min(rows, max(n, 1))


def can_count_on_device(hidden: Tensor) -> bool:
    """Whether `active_rows_product` and `Sum.add_product` can take their number of rows from the device.

    torch's grouped products do so, in one group, in bf16 on compute capability 9 and 10. Elsewhere on CUDA they would
    copy the number to the host, so that all rows are multiplied instead: right, but nothing is saved. On the CPU, where
    the interpreter runs, they wait for nobody. Not yet measured on a GPU.
    """
    if hidden.shape[1] * hidden.element_size() % 16:  # strides they accept
        return False
    if hidden.is_cuda:
        capable = torch.version.hip is None and torch.cuda.get_device_capability(hidden.device)[0] in (9, 10)
        return capable and hidden.dtype == torch.bfloat16
    return hidden.dtype != torch.float64


def active_rows_product(z: Tensor, weight: Tensor, count: Tensor | None) -> Tensor:
    """z [m, V] @ weight [V, H]. Rows from `count` [1] int32 on are not computed and hold anything; None: all are."""
    return torch.mm(z, weight) if count is None else F.grouped_mm(z, weight[None], offs=count)
