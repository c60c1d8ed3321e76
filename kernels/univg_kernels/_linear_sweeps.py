"""The loops of `linear_grpo_loss`, `linear_ce` and `linear_logprob` to the gradients: over the logits, one chunk at a
time. What a row of logits is worth, their callbacks know. Loops without gradients: _linear_forward.py.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ._linear_grads import GradientSums
from ._linear_head import Head, Rows, chunk_rows

Score = Callable[[Tensor, Rows], Tensor | None]
"""(logits [m, V], rows): score these rows, overwrite their logits with d loss/d logits (zeros in a row without one) and
return which rows have one, bool [m], or None: all."""
Backward = Callable[[Tensor, Tensor], None]
"""(logits [m, V], rows [m]): overwrite the logits of these rows with d loss/d logits, unread where that is 0."""


class Chunks(NamedTuple):
    """rows: the others are left out; None: all. length: how many they are. size: most rows of a chunk. ends: positions
    among `rows` that a chunk may end at, ascending, from 0 to `length`; None: at any."""

    rows: Tensor | None
    length: int
    size: int
    ends: list[int] | None

    def part(self, start: int, stop: int) -> Rows:
        """The rows at positions [start, stop)."""
        return slice(start, stop) if self.rows is None else self.rows[start:stop]

    def stop(self, start: int, room: int) -> int:
        """The furthest end of a chunk of at most `room` rows; `start` where none fits."""
        if self.ends is None:
            return min(start + room, self.length)
        return self.ends[bisect.bisect_right(self.ends, start + room) - 1]


def offsets_within(cu_seqlens: Tensor, rows: Rows) -> Tensor:
    """The offsets of what responses have among `rows`, most of them perhaps nothing."""
    if isinstance(rows, slice):
        return cu_seqlens.clamp(rows.start, rows.stop) - rows.start
    return torch.searchsorted(rows, cu_seqlens)


def plan_chunks(head: Head, rows: Tensor | None, coupling: str, host_seqlens: Tensor | None) -> Chunks | None:
    """Chunks in which every row that a row's gradient depends on is there, too; None: no chunk is large enough.

    rows: None for all, or some on the host; whole responses, if rows depend on theirs. A chunk holds whole responses
    where the host knows their lengths; one longer than the usual chunk makes a chunk of its own.
    """
    length, size = head.hidden.shape[0] if rows is None else rows.numel(), chunk_rows(head)
    if coupling == "row" or length <= size:
        return Chunks(rows, length, size if rows is None else min(size, length), None)
    if coupling == "batch" or host_seqlens is None or torch.compiler.is_compiling():
        return None
    ends = (host_seqlens if rows is None else offsets_within(host_seqlens, rows)).tolist()
    return Chunks(rows, length, max(size, *(b - a for a, b in zip(ends, ends[1:], strict=False))), ends)


class Kept(NamedTuple):
    """Rows that have a gradient, ascending. number: [1] int32 on the device, how many they are, if the host does not
    know: rows then goes on with those that have none."""

    rows: Tensor
    number: Tensor | None


class Skipping(NamedTuple):
    """How rows without a gradient are left out of the backward products.

    order: active [m] bool -> Kept. move: (z [m, V], kept): bring those rows of z to its top, without a second buffer.
    """

    order: Callable[[Tensor], Kept]
    move: Callable[[Tensor, Kept], None]


def _order_on_host(active: Tensor) -> Kept:
    return Kept(active.nonzero()[:, 0], None)


def _move_on_host(z: Tensor, kept: Kept) -> None:
    for target, source in enumerate(kept.rows.tolist()):
        if target != source:
            z[target].copy_(z[source])


def order_on_device(active: Tensor) -> Kept:
    """Waits for nobody."""
    order = torch.argsort((~active).to(torch.int8), stable=True)
    return Kept(order, active.sum(0, keepdim=True, dtype=torch.int32))


def skipping_on_host() -> Skipping | None:
    """For CPU tensors. torch.compile cannot follow shapes that depend on values: there all rows are multiplied."""
    return None if torch.compiler.is_compiling() else Skipping(_order_on_host, _move_on_host)


def gradient_sweep(
    head: Head, chunks: Chunks, score: Score, sums: GradientSums, skipping: Skipping | None
) -> None:  # fmt: skip
    """Make the logits chunk by chunk, let `score` turn them into their gradient, and sum up the gradients.

    skipping: None: all rows are multiplied, as are those of a chunk that all have a gradient. Where the host learns how
    many are active, they wait at the top of the buffer until it is nearly full of them, so that the backward products
    are as tall as the forward ones however few rows are active; where it does not, each chunk's go on at once.
    """
    n, buffer = chunks.length, head.buffer(chunks.size)
    waiting: list[Tensor] = []  # numbers of the rows at the top of the buffer
    start = held = 0
    while start < n:
        stop = chunks.stop(start, chunks.size - held)
        if stop > start:
            part = chunks.part(start, stop)
            z = head.logits(buffer[held : held + stop - start], part)
            active = score(z, part)
            sums.add_bias(z)
            if skipping is None or active is None:
                sums.add(z, part, active=active)
            else:
                numbers = torch.arange(start, stop, device=z.device) if isinstance(part, slice) else part
                kept = skipping.order(active)
                skipping.move(z, kept)
                if kept.number is not None:
                    sums.add(z, numbers[kept.rows], kept.number)
                else:
                    waiting.append(numbers[kept.rows])
                    held += kept.rows.numel()
        full = stop == start or held > 0.75 * chunks.size  # the next response does not fit, or hardly any row
        if waiting and (full or stop == n):
            sums.add(buffer[:held], torch.cat(waiting))
            waiting, held = [], 0
        start = stop


def remake_sweep(
    head: Head, active: Tensor, backward: Backward, sums: GradientSums, skipping: Skipping | None
) -> None:  # fmt: skip
    """Make the logits once more, of the rows that are active [N] bool, and sum up their gradients."""
    n, size = head.hidden.shape[0], chunk_rows(head)
    kept = Kept(torch.arange(n, device=active.device), None) if skipping is None else skipping.order(active)
    # Logits must come out as they did before, to the bit: a bias added after the product would round them twice.
    skips = kept.number is not None and head.bias is None
    buffer, start, end = head.buffer(0 if skips else size), 0, kept.rows.numel()
    while start < end:
        rows = kept.rows[start : min(start + size, end)]
        count = None if kept.number is None else (kept.number - start).clamp(0, rows.numel())
        z = head.first_logits(rows, count) if skips else head.logits(buffer[: rows.numel()], rows)
        backward(z, rows)
        sums.add_bias(z)
        sums.add(z, rows, count, active[rows])
        start += size
