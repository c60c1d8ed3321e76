"""The gradients of a linear head, gathered from d loss/d logits chunk by chunk; rows without a gradient left out."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ._linear_head import Head, Rows, active_rows_product

BLOCK = 8192  # rows of the weight whose product is made at once where it cannot be added at once: bounds the temporary


class LinearGrads(NamedTuple):
    hidden: Tensor | None  # [N, H]
    weight: Tensor | None  # [V, H]; None also where it went to `into`
    bias: Tensor | None  # [V]


class Sum:
    """Sum over chunks of a gradient shaped like `like`, of which only the first `rows` get any.

    Half precision is summed in fp32: rounding at every chunk would lose what the later chunks add. (The product of each
    chunk is rounded where torch has none with an fp32 result: on the CPU, and with `count`.) into: a buffer that takes
    the sum besides what it holds, in its own dtype.
    """

    def __init__(self, like: Tensor, rows: int, several: bool, into: Tensor | None = None):
        self.dtype, self.into, self.empty = like.dtype, into, into is None
        wide = torch.float32 if several and like.dtype.itemsize < 4 else like.dtype
        if into is None:
            into = torch.empty_like(like, dtype=wide, memory_format=torch.contiguous_format)
            into[rows:].zero_()
        self.whole, self.total = into, into[:rows]

    def add(self, x: Tensor) -> None:
        self.total.copy_(x) if self.empty else self.total.add_(x)
        self.empty = False

    def add_product(self, z: Tensor, hidden: Tensor, count: Tensor | None = None) -> None:
        """Add z.T [V, m] @ hidden [m, H], or of the first `count` rows of both."""
        beta, wide = 0 if self.empty else 1, self.total.dtype != self.dtype
        if count is None and not wide:
            torch.addmm(self.total, z.t(), hidden, beta=beta, out=self.total)
        elif count is None and z.is_cuda and not torch.compiler.is_compiling():  # whose fakes do not know out_dtype
            torch.addmm(self.total, z.t(), hidden, beta=beta, out_dtype=torch.float32, out=self.total)
        else:
            for start in range(0, z.shape[1], BLOCK):
                columns, part = z[:, start : start + BLOCK].t(), self.total[start : start + BLOCK]
                product = torch.mm(columns, hidden) if count is None else F.grouped_mm(columns, hidden, offs=count)[0]
                part.copy_(product) if self.empty else part.add_(product)
        self.empty = False

    def result(self) -> Tensor | None:
        if self.empty:
            self.total.zero_()
        return self.whole.to(self.dtype) if self.into is None else None


class GradientSums:
    """Of hidden, weight and bias: those that `needs` asks for. several: whether they come in more than one chunk."""

    def __init__(
        self, head: Head, weight: Tensor, bias: Tensor | None, needs: tuple[bool, ...], several: bool,
        weight_grad: Tensor | None = None,
    ):  # fmt: skip
        self.head, vocab = head, head.weight.shape[0]
        self.hidden = torch.zeros_like(head.hidden) if needs[0] else None
        self.weight = Sum(weight, vocab, several, weight_grad) if needs[1] else None
        self.bias = Sum(bias, vocab, several) if needs[2] and bias is not None else None

    def add_bias(self, z: Tensor) -> None:
        """z: gradient of a chunk of logits, zeros in rows without one."""
        if self.bias is not None:
            self.bias.add(z.sum(0, dtype=self.bias.total.dtype))

    def add(self, z: Tensor, rows: Rows, count: Tensor | None = None, active: Tensor | None = None) -> None:
        """z: [m, V] gradient of the logits of `rows` [m], or of the first `count` [1] of them; the others have none.

        active: [m] bool, where known: of other rows z is 0, and hidden may hold anything, even NaN.
        """
        if not z.shape[0]:
            return
        h = self.head.hidden[rows]
        if count is not None:
            active = torch.arange(z.shape[0], device=z.device) < count
        if active is not None:
            h = torch.where(active[:, None], h, 0.0)
        if count is not None:
            # Of a group without rows torch's product is wrong on some devices (its issue 172439): take a row of zeros.
            count = count.clamp(min=1)
        if self.hidden is not None:
            product = active_rows_product(z, self.head.weight, count)
            if count is not None and active is not None:
                product = torch.where(active[:, None], product, 0.0)
            self.hidden[rows] = product
        if self.weight is not None:
            self.weight.add_product(z, h, count)

    def result(self) -> LinearGrads:
        weight, bias = (None if s is None else s.result() for s in (self.weight, self.bias))
        return LinearGrads(self.hidden, weight, bias)
