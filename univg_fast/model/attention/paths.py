"""Varlen attention over key/value paths: gather the paths, then one call, of a library or of the torch loop below."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from univg_fast.model.attention.libraries import LIBRARIES
from univg_fast.packing.paths import PathLayout


def path_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: PathLayout, scaling: float | None = None
) -> torch.Tensor:
    """q [T, heads, D], k and v [T, kv_heads, D] -> [T, heads, D]."""
    attend = LIBRARIES[layout.face].attend if layout.face in LIBRARIES else segment_attention
    return attend(q, gather_paths(k, layout), gather_paths(v, layout), layout, scaling)


def segment_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: PathLayout, scaling: float | None
) -> torch.Tensor:
    """What the libraries compute, in plain torch: each segment's queries over its path, causal from the bottom right.

    q [T, heads, D], k and v [L, kv_heads, D] -> [T, heads, D].
    """
    gqa, outputs = q.shape[1] != k.shape[1], []
    splits = (x.split(sizes) for x, sizes in ((q, layout.lengths_q), (k, layout.lengths_k), (v, layout.lengths_k)))
    for queries, keys, values in zip(*splits, strict=True):
        mask = torch.ones(len(queries), len(keys), dtype=torch.bool, device=q.device).tril(len(keys) - len(queries))
        qs, ks, vs = (x.transpose(0, 1)[None] for x in (queries, keys, values))
        out = F.scaled_dot_product_attention(qs, ks, vs, attn_mask=mask, scale=scaling, enable_gqa=gqa)
        outputs.append(out[0].transpose(0, 1))
    return torch.cat(outputs)


def gather_paths(x: torch.Tensor, layout: PathLayout) -> torch.Tensor:
    """[T, kv_heads, D] -> [L, kv_heads, D]. A prompt's gradients of all its places are summed in at least fp32."""
    if len(layout.index) == len(x):  # nothing is shared: the paths are the row
        return x
    return _GatherPaths.apply(x, layout)


class _GatherPaths(torch.autograd.Function):
    """index_select, whose own backward would add G + 1 gradients one by one, each sum rounded to bf16, in any order."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layout: PathLayout) -> torch.Tensor:
        ctx.layout = layout
        return x.index_select(0, layout.index)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        result = grad.index_select(0, ctx.layout.first)
        wide = torch.promote_types(grad.dtype, torch.float32)
        for tokens, places in ctx.layout.shared:
            copies = grad.index_select(0, places.flatten()).view(*places.shape, *grad.shape[1:])
            result.index_copy_(0, tokens, copies.sum(1, dtype=wide).to(grad.dtype))
        return result, None
