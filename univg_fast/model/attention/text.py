"""The language model's attention: what a row's layout says, computed by the face that the layout was made for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from univg_kernels import SharedPrefix
from univg_kernels import shared_prefix_attention as kernel

from univg_fast.model.attention.dense import dense_attention
from univg_fast.model.attention.grouped import grouped_attention
from univg_fast.model.attention.paths import path_attention
from univg_fast.packing.layout import AttentionLayout, DenseLayout
from univg_fast.packing.paths import PathLayout

TEXT = "univg_shared_prefix"


def tile_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: SharedPrefix, scaling: float | None = None
) -> torch.Tensor:
    """The package's own kernel: Triton on CUDA, and on the CPU its specification, which is dense."""
    return kernel(q, k, v, layout, scale=scaling)


# (q [T, heads, D], k and v [T, kv_heads, D], layout, scaling or None for D**-0.5) -> [T, heads, D]
FACES: dict[type, Callable[..., torch.Tensor]] = {
    AttentionLayout: grouped_attention,
    PathLayout: path_attention,
    SharedPrefix: tile_attention,
    DenseLayout: dense_attention,
}


def shared_prefix_attention(
    module: Any,
    query: torch.Tensor,  # [1, heads, T, D]
    key: torch.Tensor,  # [1, kv_heads, T, D]
    value: torch.Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    layout: Any = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Returns ([1, T, heads, D], None), as transformers' attention functions do.

    `layout`: a layout of packing/layout.py, or any object with `attend(layer, q, k, v, scaling)`, a rollout's cache.
    """
    if layout is None:
        raise ValueError(
            f"{TEXT}: expected layout= (a packed row's layout or a decode cache), got none; "
            "use another attn_implementation for plain forward passes"
        )
    face = FACES.get(type(layout))
    if face is None:
        return layout.attend(module.layer_idx, query, key, value, scaling), None
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    return face(q, k, v, layout, scaling)[None], None


AttentionInterface.register(TEXT, shared_prefix_attention)
AttentionMaskInterface.register(TEXT, lambda *args, **kwargs: None)
