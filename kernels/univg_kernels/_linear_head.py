"""The linear head: hidden states to a loss and its gradients, one chunk of logits at a time.

The one loop of `linear_grpo_loss`, `linear_ce` and `linear_logprob`; what a row of logits is worth, its
callback knows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

RowHead = Callable[[Tensor, int, int], Tensor | None]
"""(logits [stop - start, V], start, stop): score these rows. Where gradients are wanted, overwrite the
logits with
d loss/d logits and return which rows have one, bool [stop - start], or None for all of them."""


class LinearGrads(NamedTuple):
    hidden: Tensor | None  # [N, H]
    weight: Tensor | None  # [V, H]
    bias: Tensor | None  # [V]


def default_chunk_rows(num_rows: int) -> int:
    """Rows of a chunk: a tenth of all, so that its logits stay a tenth of the whole, but enough to keep the
    products efficient (the weight gradient is read and written once a chunk)."""
    return max(256, num_rows // 10)


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

    needs: which gradients to make (hidden, weight, bias). Rows that `row_head` calls inactive stay out of the
    backward products; asking which they are waits for the device.
    """
    hidden, weight = hidden.detach(), weight.detach()
    n, vocab = hidden.shape[0], weight.shape[0]
    chunk = min(chunk_rows or default_chunk_rows(n), max(n, 1))
    logits = hidden.new_empty(chunk, vocab)
    d_hidden = torch.zeros_like(hidden) if needs[0] else None
    d_weight = _Sum(weight, chunk < n) if needs[1] else None
    d_bias = _Sum(bias.detach(), chunk < n) if needs[2] and bias is not None else None
    for start in range(0, n, chunk):
        stop = min(start + chunk, n)
        h, z = hidden[start:stop], logits[: stop - start]
        if bias is None:
            torch.mm(h, weight.t(), out=z)
        else:
            torch.addmm(bias.detach(), h, weight.t(), out=z)
        active = row_head(z, start, stop)
        if not any(needs):
            continue
        rows: slice | Tensor = slice(start, stop)
        if active is not None and not bool(active.all()):
            index = active.nonzero()[:, 0]
            z, h, rows = _move_up(z, index), h[index], index + start
        if z.shape[0] == 0:
            continue
        if d_hidden is not None:
            d_hidden[rows] = torch.mm(z, weight)
        if d_weight is not None:
            d_weight.add_product(z.t(), h)
        if d_bias is not None:
            d_bias.add(z.sum(0, dtype=d_bias.total.dtype))
    sums = (None if s is None else s.result() for s in (d_weight, d_bias))
    return LinearGrads(d_hidden, *sums)


def _move_up(z: Tensor, index: Tensor) -> Tensor:
    """Rows `index` (rising) of z, moved to its top: no second buffer."""
    for target, source in enumerate(index.tolist()):
        if target != source:
            z[target].copy_(z[source])
    return z[: index.numel()]


class _Sum:
    """Sum over chunks of a gradient shaped like `like`. Half precision is summed in fp32: rounding at every
    chunk
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
