"""Plain torch on any device: prompts of equal and responses of like lengths are batches; nothing of T x T anywhere."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from univg_fast.packing.layout import AttentionLayout, Bucket, Responses


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
        outputs += _bucket(bucket, [next(parts) for _ in bucket.sizes], scaling)
    return torch.cat(outputs).index_select(0, layout.inverse)


Parts = tuple[torch.Tensor, ...]  # q, k and v


def _bucket(bucket: Bucket, parts: list[Parts], scaling: float | None) -> list[torch.Tensor]:
    """Outputs in the order of the gather: [rows, heads, D] of the prompts and of each class of responses."""
    prompts, *responses = parts
    gqa = prompts[0].shape[1] != prompts[1].shape[1]
    q, k, v = (_batched(x, *bucket.prompts) for x in prompts)
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=gqa)
    outputs = [_flat(out)]
    for alike, (own_q, own_k, own_v) in zip(bucket.classes, responses, strict=True):
        own = F.scaled_dot_product_attention(
            _batched(own_q, sum(alike.counts), len(alike.mask)),
            _paths(alike, k, own_k),
            _paths(alike, v, own_v),
            attn_mask=alike.mask,
            scale=scaling,
            enable_gqa=gqa,
        )
        outputs.append(_flat(own))
    return outputs


def _paths(alike: Responses, prompts: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """Each response's own view of its prompt and itself: [responses, heads, P + R, D]."""
    first, *rest = alike.counts
    if all(count == first for count in rest):  # the prompts are copied once, into the result
        shared = prompts[:, None].expand(-1, first, -1, -1, -1)
    else:
        each = zip(prompts.split(1), alike.counts, strict=True)
        shared = torch.cat([prompt.expand(count, -1, -1, -1) for prompt, count in each])[None]
    own = _batched(own, *shared.shape[:2], len(alike.mask))
    return torch.cat([shared, own], dim=3).flatten(0, 1)


def _batched(x: torch.Tensor, *shape: int) -> torch.Tensor:
    """[prod(shape), heads, D] -> [*shape[:-1], heads, shape[-1], D]"""
    return x.view(*shape, *x.shape[1:]).transpose(-3, -2)


def _flat(x: torch.Tensor) -> torch.Tensor:
    """[batch, heads, L, D] -> [batch * L, heads, D]"""
    return x.transpose(1, 2).flatten(0, 1)
