"""Rows of a chunk that have a gradient, brought to its top without a second chunk and without asking the host."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._linear_head import can_count_on_device
from .._linear_sweeps import Kept, Skipping, order_on_device
from .launch import launch

ROWS = 16
WORDS = 128
WARPS = 4


@triton.jit(do_not_specialize=["stride", "width"])
def compact_kernel(z, stride, order, count, width, ROWS: tl.constexpr, WORDS: tl.constexpr):
    """Row i of z becomes row order[i], i < count, in a strip of WORDS columns. order ascends, so that order[i] >= i:
    what a tile of rows overwrites has been read by it or by an earlier one. Rows that stay are not touched."""
    columns = tl.program_id(0) * WORDS + tl.arange(0, WORDS)
    n = tl.load(count)
    for start in range(0, n, ROWS):
        i = start + tl.arange(0, ROWS).to(tl.int64)
        source = tl.load(order + i, mask=i < n, other=0)
        moves = ((i < n) & (source != i))[:, None] & (columns < width)[None, :]
        tile = tl.load(z + source[:, None] * stride + columns[None, :], mask=moves)
        tl.debug_barrier()  # the whole tile is read before any of it is overwritten, by whichever thread
        tl.store(z + i[:, None] * stride + columns[None, :], tile, mask=moves)


@torch.library.custom_op("univg_kernels::triton_compact_", mutates_args=("z",))
def triton_compact_(z: Tensor, order: Tensor, count: Tensor) -> None:
    """order: [m] int64, whose first `count` [1] int32 ascend. z: moved in words of 8 bytes where its rows consist of
    them, as those of a usual vocabulary do."""
    fits = all(x * z.element_size() % 8 == 0 for x in (z.shape[1], z.stride(0), z.storage_offset()))
    words = z.view(torch.int64) if fits else z
    width = words.shape[1]
    launch(
        compact_kernel, triton.cdiv(width, WORDS), z, words, words.stride(0), order, count, width,
        ROWS=ROWS, WORDS=WORDS, num_warps=WARPS, num_stages=1,
    )  # fmt: skip


def _move(z: Tensor, kept: Kept) -> None:
    assert kept.number is not None  # order_on_device
    triton_compact_(z, kept.rows, kept.number)


def skipping_on_device(hidden: Tensor) -> Skipping | None:
    """None where the products cannot be told the number of rows without a copy to the host: all are multiplied. So
    under torch.compile, which allocates logits with strides that they do not accept."""
    counts = can_count_on_device(hidden) and not torch.compiler.is_compiling()
    return Skipping(order_on_device, _move) if counts else None
