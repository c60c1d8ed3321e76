"""Triton face of `difficulty_weight`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._triton.launch import launch
from .._triton.responses import difficulty

BLOCK = 256
WARPS = 1


@triton.jit(do_not_specialize=["K"])
def difficulty_kernel(miou, out, K, power, KIND: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m = tl.load(miou + i, mask=i < K, other=0.0)
    tl.store(out + i, difficulty(m, power, KIND), mask=i < K)


@torch.library.custom_op("univg_kernels::triton_difficulty", mutates_args=())
def triton_difficulty(miou: Tensor, kind: str, power: float) -> Tensor:
    out = torch.empty_like(miou)
    launch(
        difficulty_kernel, triton.cdiv(miou.numel(), BLOCK), miou, miou, out, miou.numel(), power,
        KIND=kind, BLOCK=BLOCK, num_warps=WARPS,
    )  # fmt: skip
    return out


@triton_difficulty.register_fake
def _(miou: Tensor, kind: str, power: float) -> Tensor:
    return torch.empty_like(miou)


def difficulty_weight(miou: Tensor, kind: str, power: float, normalize: bool) -> Tensor:
    out = triton_difficulty(miou.contiguous(), kind, float(power))
    return out / out.mean() if normalize and out.numel() else out
