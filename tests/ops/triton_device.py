"""Where the suites of the Triton faces run: on a GPU, or in Triton's interpreter. A pytest plugin, see run_suite."""

from __future__ import annotations

import os
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
import triton.language as tl
from torch import Tensor
from triton.runtime import interpreter

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
FACES = ("triton", "reference")
DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(autouse=True)
def rounding_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter cuts fp32 off to bf16; compiled kernels and torch round to nearest even."""
    if DEVICE == "cuda":
        return

    def convert(data: np.ndarray, source: tl.dtype, target: tl.dtype, mode: Any) -> np.ndarray:
        if source == tl.float32 and target == tl.bfloat16:
            return torch.from_numpy(data.view(np.float32)).bfloat16().view(torch.uint16).numpy()
        return original(data, source, target, mode)

    original = interpreter._convert_float
    monkeypatch.setattr(interpreter, "_convert_float", convert)


@pytest.fixture(autouse=True)
def products_of_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter holds bf16 as integers, and multiplies those; a GPU multiplies the numbers into fp32."""
    if DEVICE == "cuda":
        return

    def wide(x: Any) -> Any:
        if x.dtype.scalar != tl.bfloat16:
            return x
        data = torch.from_numpy(x.data.view(np.int16)).view(torch.bfloat16).float().numpy()
        return interpreter.TensorHandle(data, tl.float32)

    def dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return original(self, wide(a), wide(b), *rest)

    original = interpreter.InterpreterBuilder.create_dot
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", dot)


def moved(x: Any) -> Any:
    if isinstance(x, dict):
        return {k: moved(v) for k, v in x.items()}
    return x.to(DEVICE) if isinstance(x, Tensor) else x


def on_device(case: Any) -> Any:
    return replace(case, **{f.name: moved(getattr(case, f.name)) for f in fields(case)})
