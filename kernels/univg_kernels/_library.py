"""Finds and loads the C++ library `_C` once."""

from __future__ import annotations

import importlib.util
from functools import cache

import torch

NOT_BUILT = (
    "the C++ library univg_kernels._C is not built; with a C++ compiler present run: "
    "pip install --no-build-isolation . (in the source folder), or use backend='reference'"
)


def _find() -> str | None:
    # Not Path(__file__).parent: in an editable install the library lies in site-packages, away from this file.
    spec = importlib.util.find_spec(f"{__package__}._C")
    return spec.origin if spec else None


PATH = _find()


def is_built() -> bool:
    return PATH is not None


@cache
def load() -> None:
    """Register the C++ ops under torch.ops.univg_kernels. Raises RuntimeError if the library does not load."""
    if PATH is None:
        raise RuntimeError(NOT_BUILT)
    try:
        torch.ops.load_library(PATH)
    except OSError as error:
        raise RuntimeError(
            f"{PATH} does not load under torch {torch.__version__} ({error}); it needs torch >= 2.10: "
            "reinstall univg-fast with this torch present"
        ) from error


def loads() -> bool:
    """Whether `load` succeeds."""
    try:
        load()
    except RuntimeError:
        return False
    return True
