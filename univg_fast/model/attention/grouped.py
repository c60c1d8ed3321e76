"""Plain torch on any device: prompts of equal and responses of like lengths are batches; nothing of T x T anywhere."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from univg_fast.packing.layout import AttentionLayout, Bucket, Responses


def grouped_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: AttentionLayout, scaling: float | None = None
) -> torch.Tensor:
    """q [T, heads, D], k and v [T, kv_heads, D] -> [T, heads, D].

    At most one gather, and one `split` for all buckets: the gradient of a split is one concatenation, that of a slice
    or of a gather for each bucket is a whole row of zeros each time.
    """
    sizes = [size for bucket in layout.buckets for size in bucket.sizes]
    if layout.gather is not None:
        q, k, v = (x.index_select(0, layout.gather) for x in (q, k, v))
    parts = zip(*(x.split(sizes) for x in (q, k, v)), strict=True)
    outputs = []
    for bucket in layout.buckets:
        outputs += _bucket(bucket, [next(parts) for _ in bucket.sizes], scaling)
    out = torch.cat(outputs)
    return out if layout.inverse is None else out.index_select(0, layout.inverse)


Parts = tuple[torch.Tensor, ...]  # q, k and v


def _bucket(bucket: Bucket, parts: list[Parts], scaling: float | None) -> list[torch.Tensor]:
    """Outputs in the order of the gather: [rows, heads, D] of the prompts and of each class of responses."""
    prompts, *responses = parts
    q, k, v = (_batched(x, *bucket.prompts) for x in prompts)
    outputs = [_flat(_attend(q, k, v, is_causal=True, scale=scaling))]
    for alike, (own_q, own_k, own_v) in zip(bucket.classes, responses, strict=True):
        own = _batched(own_q, sum(alike.counts), len(alike.mask))
        keys, values = _paths(alike, k, own_k), _paths(alike, v, own_v)
        outputs.append(_flat(_attend(own, keys, values, attn_mask=alike.mask, scale=scaling)))
    return outputs


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **how: Any) -> torch.Tensor:
    """[batch, heads, L, D] each; one call, whose scores must stay within a kernel.

    On CUDA torch has one such kernel for fp32, and for a mask one on every GPU: its memory-efficient one, which knows
    no grouped heads (up to 2.13). They would go to the one that writes all scores, heads x L x L of them.
    """
    share = q.shape[1] // k.shape[1]
    fits = q.dtype in (torch.bfloat16, torch.float16) and "attn_mask" not in how
    if share > 1 and q.device.type == "cuda" and not fits:
        k, v, share = k.repeat_interleave(share, dim=1), v.repeat_interleave(share, dim=1), 1
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=share > 1, **how)


def _paths(alike: Responses, prompts: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """Each response's own view of its prompt and itself: [responses, heads, P + R, D]."""
    first, *rest = alike.counts
    if all(count == first for count in rest):  # the prompts are copied once, into the result
        shared = prompts.unsqueeze(1).expand(-1, first, -1, -1, -1)
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
