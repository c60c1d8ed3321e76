"""The oracle: one masked attention over the whole row. Quadratic memory; for tests and tiny runs."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from univg_fast.packing.layout import DenseLayout


def dense_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: DenseLayout, scaling: float | None = None
) -> torch.Tensor:
    """q [T, heads, D], k and v [T, kv_heads, D] -> [T, heads, D]."""
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    gqa = q.shape[1] != k.shape[1]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=layout.mask, scale=scaling, enable_gqa=gqa)
    return out[0].transpose(0, 1)
