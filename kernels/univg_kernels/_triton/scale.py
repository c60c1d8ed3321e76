"""Multiply a gradient by the upstream scalar without asking the host what it is."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .launch import launch

BLOCK = 4096
STEPS = 16  # blocks of one program
WARPS = 8


@triton.jit
def scale_kernel(x, factor, numel, BLOCK: tl.constexpr, STEPS: tl.constexpr):
    f = tl.load(factor).to(tl.float32)
    if f != 1.0:  # the common case costs one scalar read of each program, not a pass over x
        start = tl.program_id(0).to(tl.int64) * BLOCK * STEPS
        for step in range(STEPS):
            i = start + step * BLOCK + tl.arange(0, BLOCK)
            v = tl.load(x + i, mask=i < numel, other=0.0).to(tl.float32)
            tl.store(x + i, (v * f).to(x.dtype.element_ty), mask=i < numel)


def scale_on_device(grad: Tensor, upstream: Tensor) -> None:
    """grad *= upstream, in place; nothing is read or written where upstream is 1."""
    if not grad.is_contiguous():  # logits that are a slice of something: rare, and torch knows strides
        grad.mul_(upstream)
        return
    programs = triton.cdiv(grad.numel(), BLOCK * STEPS)
    launch(
        scale_kernel, programs, grad, grad, upstream.detach(), grad.numel(), BLOCK=BLOCK, STEPS=STEPS, num_warps=WARPS
    )
