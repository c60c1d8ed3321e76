"""What this machine can do at best, measured in the same run: bytes copied and multiplications a second."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch

from .device import Device
from .shapes import DTYPES

ROUNDS = 5


class Ceilings(NamedTuple):
    copy: float  # bytes read + bytes written, a second: of a copy or of a sweep in place, whichever is faster
    gemm: dict[str, float]  # by dtype: floating-point operations a second of one square product


def measure_ceilings(device: Device, scale: float = 1.0) -> Ceilings:
    """`scale`: share of the usual sizes, for tests."""
    copy = _copy_rate(device, int(device.copy_bytes * scale) // 4)
    n = max(16, int(device.gemm_size * scale**0.5))
    gemm = {}
    for name, dtype in DTYPES.items():
        a, b = (torch.ones(n, n, device=device.torch, dtype=dtype) for _ in range(2))
        out = torch.empty_like(a)
        gemm[name] = 2 * n**3 / _seconds(device, partial(torch.mm, a, b, out=out))
    device.release()
    return Ceilings(copy, gemm)


def _copy_rate(device: Device, numbers: int) -> float:
    """On a CPU a sweep in place is the faster one: a copy first fetches what it then overwrites."""
    source = torch.ones(numbers, device=device.torch)
    target = torch.empty_like(source)
    sweeps = (partial(target.copy_, source), partial(source.mul_, 1))
    return 2 * 4 * numbers / min(_seconds(device, run) for run in sweeps)


def _seconds(device: Device, run: Callable[[], Any]) -> float:
    run()
    return statistics.median(device.sample(run, device.modes[0]).seconds for _ in range(ROUNDS))
