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


def difficulty_weight(miou: Tensor, kind: str, power: float, normalize: bool) -> Tensor:
    m = miou.contiguous()
    out = torch.empty_like(m)
    launch(
        difficulty_kernel, triton.cdiv(m.numel(), BLOCK), m, m, out, m.numel(), float(power),
        KIND=kind, BLOCK=BLOCK, num_warps=WARPS,
    )  # fmt: skip
    return out / out.mean() if normalize and out.numel() else out
