"""Counters of what makes the host wait for the device, where the device is the CPU."""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# Operations whose result's shape or value the host needs: on a GPU each of them waits.
WAITING = {
    "_local_scalar_dense",
    "nonzero",
    "is_nonzero",
    "masked_select",
    "_unique2",
    "unique_dim",
    "bincount",
    "equal",
}
READING = {"item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "__array__"}


def seen_elsewhere() -> bool:
    """Called by a face of an op for the CPU, which may look at values (the GPU test sees those for CUDA), or by a
    tower, which splits by lengths that stay on the host (the test on the meta device sees whether it reads others)."""
    frame = sys._getframe()
    while frame is not None:
        if "univg_kernels" in frame.f_code.co_filename or frame.f_code.co_name == "encode_images":
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


class Operations(TorchDispatchMode):
    """Operations that wait, also inside of autograd and of other functions."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        masked = name in ("index", "index_put", "index_put_") and any(
            x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1]
        )
        unsized = name == "repeat_interleave" and not (kwargs or {}).get("output_size")
        if (name in WAITING or masked or unsized) and not seen_elsewhere():
            self.seen[name] += 1
        return func(*args, **(kwargs or {}))


class Calls(TorchFunctionMode):
    """Tensors turned into numbers, lists or arrays; on the CPU some of these are no operation at all."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in READING and not seen_elsewhere():
            self.seen[name] += 1
        return func(*args, **(kwargs or {}))
