"""What torch.autocast means for the linear heads: what it means for F.linear."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor


def _enabled(kind: str) -> bool:
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def as_linear(*inputs: Any) -> tuple[Any, ...]:
    """Inside torch.autocast the inputs in its dtype, by a differentiable cast; elsewhere, and in fp64, as they are."""
    first = inputs[0]
    if not isinstance(first, Tensor) or first.dtype == torch.float64 or not _enabled(first.device.type):
        return inputs
    dtype = torch.get_autocast_dtype(first.device.type)
    return tuple(x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs)


def no_autocast(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """The faces multiply in the dtype they are given: autocast would give some of their products another."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if _enabled(kind) else contextlib.nullcontext()
