"""How kernels are launched: one table of constants, one launcher.

The constants follow from V and the dtype alone, so that no length of a batch compiles anything; sizes and scalars are
run-time arguments. Grids have one dimension, which holds 2^31 - 1 programs.
"""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor


class RowLaunch(NamedTuple):
    """Constants of a kernel that gives one program to each row of logits."""

    LANES: int
    VEC: int
    num_warps: int


def row_launch(vocab: int, itemsize: int) -> RowLaunch:
    """A tile is LANES·VEC columns; VEC fill one 16-byte load.

    At V = 152k: 2048 lanes on 32 warps, two loads of each thread a tile and the next tile behind it, 64 KiB in flight.
    The 1024 threads of up to 64 registers also keep a multiprocessor to one row: 132 rows of 304 KB are 40 MB, which
    fit the 50 MB L2 cache of an H100 or H200 while the backward sweep follows the forward one. Rows of a vocabulary
    that is no multiple of VEC allow no wide loads; the narrow ones need more registers than 1024 threads have.
    """
    vec = 16 // itemsize
    lanes = min(2048 if vocab % vec == 0 else 1024, max(32, triton.next_power_of_2(triton.cdiv(vocab, vec))))
    return RowLaunch(lanes, vec, min(32, max(1, lanes // 64)))


# Passed to every launch: products and sums are fused as they are by nvcc. Said outright because triton is about to
# change its default; where one rounding matters the kernels call fma themselves.
OPTIONS: dict[str, Any] = {"enable_fp_fusion": True}


def launch(kernel: Any, programs: int, like: Tensor, *args: Any, **kwargs: Any) -> None:
    """Run `programs` programs of `kernel` on the device of `like`. No programs: nothing to do."""
    if programs == 0:
        return
    guard = torch.cuda.device(like.device) if like.is_cuda else contextlib.nullcontext()
    with guard:
        kernel[(programs,)](*args, **kwargs, **OPTIONS)


def vector(x: Tensor | None, dtype: torch.dtype = torch.float32) -> Tensor | None:
    """A small per-row or per-response argument as the kernels read it. No copy where it is so already."""
    return None if x is None else x.to(dtype).contiguous()


def check_dtype(op: str, x: Tensor) -> None:
    if x.dtype == torch.float64:
        raise ValueError(
            f"{op}: backend 'triton' computes in fp32 and takes float32, bfloat16 or float16, got float64; "
            "use backend='reference'"
        )
