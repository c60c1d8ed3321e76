"""The varlen libraries for CUDA. Each is one call, made here; all around it runs, and is tested, in plain torch too.

All take q [T, heads, D], k and v [L, kv_heads, D] and a layout of the same device, and give [T, heads, D].
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any, NamedTuple

import torch

from univg_fast.packing.paths import PathLayout


class Library(NamedTuple):
    """`arguments`: every name that `attend` passes to `function`, which the installed version has to know."""

    attend: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, PathLayout, float | None], torch.Tensor]
    module: str
    function: str
    arguments: tuple[str, ...]
    install: str


@cache
def installed(name: str) -> Any:
    """The library's function. ValueError says what is missing and how to get it."""
    library = LIBRARIES[name]
    package = library.module.partition(".")[0]
    try:
        function = getattr(importlib.import_module(library.module), library.function)
    except (ImportError, AttributeError, OSError) as error:  # OSError: a binary for another torch or CUDA
        raise ValueError(f"{package}: {type(error).__name__}: {error}; {library.install}") from error
    unknown = [a for a in library.arguments if a not in inspect.signature(function).parameters]
    if unknown:
        raise ValueError(f"{package}: its {library.function} takes no {', '.join(unknown)}; {library.install}")
    return function


def _flash_attn(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: PathLayout, scaling: float | None
) -> torch.Tensor:
    return installed("flash_attn")(
        q,
        k,
        v,
        cu_seqlens_q=layout.cu_seqlens_q,
        cu_seqlens_k=layout.cu_seqlens_k,
        max_seqlen_q=layout.max_q,
        max_seqlen_k=layout.max_k,
        softmax_scale=scaling,
        causal=True,  # aligned to the bottom right since 2.1
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )


def _varlen(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: PathLayout, scaling: float | None
) -> torch.Tensor:
    return installed("varlen")(
        q,
        k,
        v,
        cu_seq_q=layout.cu_seqlens_q,
        cu_seq_k=layout.cu_seqlens_k,
        max_q=layout.max_q,
        max_k=layout.max_k,
        scale=scaling,
        window_size=(-1, 0),  # causal
        enable_gqa=q.shape[1] != k.shape[1],
    )


def _xformers(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: PathLayout, scaling: float | None
) -> torch.Tensor:
    share = q.shape[1] // k.shape[1]  # its backward knows no grouped heads: keys and values are repeated
    mask = bottom_right_mask(layout.lengths_q, layout.lengths_k, q.device)
    k, v = (x.repeat_interleave(share, dim=1) for x in (k, v))
    return installed("xformers")(q[None], k[None], v[None], attn_bias=mask, scale=scaling)[0]


@lru_cache(maxsize=8)
def bottom_right_mask(lengths_q: tuple[int, ...], lengths_k: tuple[int, ...], device: torch.device) -> Any:
    """xformers' description of the layout, made once for all layers of a row."""
    biases = importlib.import_module("xformers.ops.fmha.attn_bias")
    return biases.BlockDiagonalCausalFromBottomRightMask.from_seqlens(lengths_q, lengths_k, device=device)


LIBRARIES = {
    "flash_attn": Library(
        _flash_attn,
        "flash_attn",
        "flash_attn_varlen_func",
        ("cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k", "softmax_scale", "causal", "deterministic"),
        "run: pip install --no-build-isolation 'flash-attn>=2.4.1'",
    ),
    "varlen": Library(
        _varlen,
        "torch.nn.attention.varlen",
        "varlen_attn",
        ("cu_seq_q", "cu_seq_k", "max_q", "max_k", "scale", "window_size", "enable_gqa"),
        "it comes with torch 2.12 and later",
    ),
    "xformers": Library(
        _xformers,
        "xformers.ops",
        "memory_efficient_attention",
        ("attn_bias", "scale"),
        "run: pip install --no-deps xformers",
    ),
}
