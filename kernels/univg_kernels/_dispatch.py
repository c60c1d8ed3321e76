"""Which face of an op runs: the single ladder of decisions."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
from functools import cache
from types import ModuleType
from typing import Literal

import torch

from . import _library
from .config import check_choice

Backend = Literal["auto", "triton", "cpp", "cuda", "reference"]
FACES = {"triton": "triton_impl", "cpp": "cpp_impl", "cuda": "cuda_impl", "reference": "reference"}
# What "auto" takes on a device. On CUDA `grpo_loss` has a second compiled face, "cuda", for rows that are alone: times
# measured on a GPU (`python -m bench.ops --device cuda`) are to say which of the two is taken; there are none yet.
AUTO = {"cuda": "triton", "cpu": "cpp"}
CUDA_OPS = ("box_iou", "grpo_loss")  # that have a CUDA C++ face
_log = logging.getLogger(__package__)
_loaded: dict[tuple[str, str, str], ModuleType] = {}


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@cache
def _has_cuda_ops() -> bool:
    # torch knows no op, and raises where it is asked for one, before the library is loaded
    return _library.loads() and torch._C._dispatch_has_kernel_for_dispatch_key("univg_kernels::grpo_head_", "CUDA")


def resolve(device: torch.device | str, backend: Backend = "auto") -> str:
    """Name the face that runs for tensors on `device`: "triton", "cpp", "cuda" or "reference".

    "auto" is Triton on CUDA and C++ on the CPU, and the reference where that one is not installed.
    Raises ValueError when an explicit `backend` cannot run, with what to do about it. Has no side effect.
    """
    kind = torch.device(device).type
    check_choice("resolve", "backend", backend, ("auto", *FACES))
    if backend == "auto":
        installed = _has_triton() if kind == "cuda" else _library.is_built()
        return AUTO.get(kind, "reference") if installed else "reference"
    if backend == "triton":
        if not _has_triton():
            raise ValueError("backend 'triton' needs the package triton; run: pip install triton")
        if kind != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
            raise ValueError(
                f"backend 'triton' needs CUDA tensors, got {kind}; move them to a GPU, "
                "or set TRITON_INTERPRET=1 before the first import to run in the interpreter"
            )
    if backend == "cpp":
        if kind != "cpu":
            raise ValueError(f"backend 'cpp' needs CPU tensors, got {kind}; use backend='triton' or 'auto'")
        if not _library.is_built():
            raise ValueError(f"backend 'cpp': {_library.NOT_BUILT}")
    if backend == "cuda":
        if kind != "cuda":
            raise ValueError(f"backend 'cuda' needs CUDA tensors, got {kind}; use backend='cpp' or 'auto'")
        if not _has_cuda_ops():
            raise ValueError(
                "backend 'cuda': the C++ library univg_kernels._C is not built, or without CUDA; with a CUDA torch and "
                "its nvcc run: pip install --no-build-isolation . (in the source folder), or use backend='triton'"
            )
        if torch.cuda.is_available() and torch.cuda.get_device_capability(device) < (9, 0):
            raise ValueError(
                "backend 'cuda' needs a GPU of compute capability 9.0 (Hopper) or above, got "
                f"{torch.cuda.get_device_capability(device)}; use backend='triton' or 'auto'"
            )
    return backend


def face(op: str, device: torch.device, backend: Backend) -> ModuleType:
    """The module that implements `op` on `device`. Chosen and logged once per op, device type and backend."""
    key = op, backend, device.type
    if key not in _loaded:  # a plain dictionary: torch.compile can follow it, and not all of resolve
        if backend == "cuda" and op not in CUDA_OPS:
            raise ValueError(f"{op}: backend 'cuda' has {', '.join(CUDA_OPS)} only; use backend='triton' or 'auto'")
        _load(op, device.type, backend, _face_name(op, device, backend))
    return _loaded[key]


def _face_name(op: str, device: torch.device | str, backend: Backend) -> str:
    """`resolve`, for an op that may lack the C++ face that "auto" would take."""
    name = resolve(device, backend)
    if importlib.util.find_spec(f"{__package__}.{op}.{FACES[name]}"):
        return name
    if backend == "auto":
        return "reference"
    raise ValueError(f"{op}: has no {name} face; use backend='auto' or 'reference'")


def _load(op: str, kind: str, backend: Backend, name: str) -> None:
    _log.info("%s runs on %s through its %s face", op, kind, name)
    module = importlib.import_module(f"{__package__}.{op}.{FACES[name]}")
    _loaded[op, backend, kind] = _loaded[op, name, kind] = module


def load_faces(ops: tuple[str, ...]) -> None:
    """Import what "auto" and "reference" take on the devices here. torch.compile cannot import while it traces.

    A C++ library that does not load under this torch is left for the first call to complain of: the reference works.
    """
    backends: tuple[Backend, ...] = ("auto", "reference")
    for kind in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        for backend in backends:
            for op in ops:
                name = _face_name(op, kind, backend)
                if name != "cpp" or _library.loads():
                    _load(op, kind, backend, name)
