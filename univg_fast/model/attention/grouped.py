"""Plain torch on any device: prompts and responses of equal lengths are batches; nothing of T x T anywhere."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from univg_fast.packing.layout import AttentionLayout, Bucket


def grouped_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: AttentionLayout, scaling: float | None = None
) -> torch.Tensor:
    """q [T, heads, D], k and v [T, kv_heads, D] -> [T, heads, D].

    One gather and one `split` for all buckets: the gradient of a split is one concatenation, that of a slice or of a
    gather for each bucket is a whole row of zeros each time.
    """
    sizes = [size for bucket in layout.buckets for size in bucket.sizes]
    parts = zip(*(x.index_select(0, layout.gather).split(sizes) for x in (q, k, v)), strict=True)
    outputs = []
    for bucket in layout.buckets:
        outputs += _bucket(bucket, next(parts), next(parts), scaling)
    return torch.cat(outputs).index_select(0, layout.inverse)


Parts = tuple[torch.Tensor, ...]  # q, k and v


def _bucket(bucket: Bucket, prompts: Parts, responses: Parts, scaling: float | None) -> list[torch.Tensor]:
    """Outputs in the order of the gather: [K*P, heads, D] and, where there are responses, [K*G*R, heads, D]."""
    num, length, group, longest = bucket.shape
    gqa = prompts[0].shape[1] != prompts[1].shape[1]
    q, k, v = (_batched(x, num, length) for x in prompts)
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=gqa)
    if bucket.mask is None:
        return [_flat(out)]

    def path(prefix: torch.Tensor, own: torch.Tensor) -> torch.Tensor:  # each response's own view of prompt + itself
        shared = prefix[:, None].expand(num, group, *prefix.shape[1:])
        return torch.cat([shared, _batched(own, num, group, longest)], dim=3).flatten(0, 1)

    own = F.scaled_dot_product_attention(
        _batched(responses[0], num * group, longest),
        path(k, responses[1]),
        path(v, responses[2]),
        attn_mask=bucket.mask,
        scale=scaling,
        enable_gqa=gqa,
    )
    return [_flat(out), _flat(own)]


def _batched(x: torch.Tensor, *shape: int) -> torch.Tensor:
    """[prod(shape), heads, D] -> [*shape[:-1], heads, shape[-1], D]"""
    return x.view(*shape, *x.shape[1:]).transpose(-3, -2)


def _flat(x: torch.Tensor) -> torch.Tensor:
    """[batch, heads, L, D] -> [batch * L, heads, D]"""
    return x.transpose(1, 2).flatten(0, 1)
