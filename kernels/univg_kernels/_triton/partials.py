"""Per-row partial results and their reduction.

Each row writes its own column of `partials` [PARTIALS, N] and a second, tiny launch adds them up in a fixed order:
no atomics, so that two runs give the same bits, and N·44 bytes of traffic beside 4·N·V.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..metrics import METRICS, NUM_SUMS
from .launch import launch

PARTIALS = 11  # loss, the sums of METRICS in their order, |logp - old_logp|, |old_logp - sampling_logp|
REDUCE_BLOCK = 2048
REDUCE_WARPS = 8


@triton.jit
def store_partials(partials, stride, n, loss, counted, kl, entropy, low, high, ratio, importance, dropped, difference,
                   sampling_difference, mask):  # fmt: skip
    """Scalars or blocks; `mask` says which of them exist."""
    tl.store(partials + n, loss, mask=mask)
    tl.store(partials + stride + n, counted, mask=mask)
    tl.store(partials + 2 * stride + n, kl, mask=mask)
    tl.store(partials + 3 * stride + n, entropy, mask=mask)
    tl.store(partials + 4 * stride + n, low, mask=mask)
    tl.store(partials + 5 * stride + n, high, mask=mask)
    tl.store(partials + 6 * stride + n, ratio, mask=mask)
    tl.store(partials + 7 * stride + n, importance, mask=mask)
    tl.store(partials + 8 * stride + n, dropped, mask=mask)
    tl.store(partials + 9 * stride + n, difference, mask=mask)
    tl.store(partials + 10 * stride + n, sampling_difference, mask=mask)


@triton.jit(do_not_specialize=["N"])
def reduce_kernel(partials, out, N, NUM_SUMS: tl.constexpr, BLOCK: tl.constexpr):
    """out[j]: sums of the partials up to NUM_SUMS (the loss is one more), then the maxima (NaN kept) of METRICS."""
    j = tl.program_id(0)
    is_sum = j <= NUM_SUMS
    source = j  # the two ratios are both summed and maximised; the differences follow the sums
    source = tl.where(j == NUM_SUMS + 1, 6, source)
    source = tl.where(j == NUM_SUMS + 2, 9, source)
    source = tl.where(j == NUM_SUMS + 3, 7, source)
    source = tl.where(j == NUM_SUMS + 4, 10, source)
    row = partials + source.to(tl.int64) * N
    total = tl.zeros([BLOCK], tl.float32)
    top = tl.zeros([BLOCK], tl.float32)
    for start in range(0, N, BLOCK):
        i = start + tl.arange(0, BLOCK)
        x = tl.load(row + i, mask=i < N, other=0.0)
        total += x
        top = tl.maximum(top, x, propagate_nan=tl.PropagateNan.ALL)
    lost = tl.sum((top != top).to(tl.int32), axis=0) > 0
    maximum = tl.where(lost, float("nan"), tl.max(top, axis=0))
    tl.store(out + j, tl.where(is_sum, tl.sum(total, axis=0), maximum))


def empty_partials(num_rows: int, like: Tensor) -> Tensor:
    return torch.empty(PARTIALS, num_rows, dtype=torch.float32, device=like.device)


@torch.library.custom_op("univg_kernels::triton_reduce", mutates_args=())
def triton_reduce(partials: Tensor) -> Tensor:
    out = torch.empty(1 + len(METRICS), dtype=torch.float32, device=partials.device)
    launch(
        reduce_kernel, len(METRICS) + 1, out, partials, out, partials.shape[1],
        NUM_SUMS=NUM_SUMS, BLOCK=REDUCE_BLOCK, num_warps=REDUCE_WARPS,
    )  # fmt: skip
    return out


@triton_reduce.register_fake
def _(partials: Tensor) -> Tensor:
    return partials.new_empty(1 + len(METRICS))


def reduce_partials(partials: Tensor) -> tuple[Tensor, Tensor]:
    """(loss scalar, metrics [len(METRICS)]), fp32."""
    out = triton_reduce(partials)
    return out[0], out[1:]
