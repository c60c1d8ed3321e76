"""Attention over packed shared-prefix rows, registered with transformers under two names.

`univg_shared_prefix` (language model) reads its `layout` keyword: an AttentionLayout for a packed row, or a decode
step's cache (any object with `attend`). `univg_images` (vision tower) reads `image_runs`: runs of equal-sized images.
The names avoid the word transformers takes for a kernel request.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface

from univg_fast.packing.layout import AttentionLayout, Bucket
from univg_fast.packing.vision import VisionInputs

TEXT, VISION = "univg_shared_prefix", "univg_images"


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
    """Returns ([1, T, heads, D], None), as transformers' attention functions do."""
    if layout is None:
        raise ValueError(
            f"{TEXT}: expected layout= (a packed row's AttentionLayout or a decode cache), got none; "
            "use another attn_implementation for plain forward passes"
        )
    if not isinstance(layout, AttentionLayout):
        return layout.attend(module.layer_idx, query, key, value, scaling), None
    q, k, v = query[0], key[0], value[0]
    outputs = [_bucket(b, q, k, v, scaling) for b in layout.buckets]
    return torch.cat(outputs).index_select(0, layout.inverse)[None], None


def _bucket(bucket: Bucket, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scaling: float | None) -> torch.Tensor:
    """Outputs [K*P + K*G*R, heads, D]: the bucket's prompts, then its responses."""
    gqa = q.shape[0] != k.shape[0]
    num, length = bucket.prompts.shape

    def take(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:  # [heads, T, D] -> [K, heads, L, D]
        return x.index_select(1, index.reshape(-1)).view(x.shape[0], *index.shape, -1).movedim(0, -3)

    kp, vp = take(k, bucket.prompts), take(v, bucket.prompts)
    out = F.scaled_dot_product_attention(take(q, bucket.prompts), kp, vp, is_causal=True, scale=scaling, enable_gqa=gqa)
    prompt = out.transpose(1, 2).reshape(num * length, *_heads(q))
    if bucket.responses is None:
        return prompt
    _, group, longest = bucket.responses.shape

    def path(prefix: torch.Tensor, own: torch.Tensor) -> torch.Tensor:  # each response's own view of prompt + itself
        shared = prefix[:, None].expand(num, group, *prefix.shape[1:])
        return torch.cat([shared, own], dim=3).flatten(0, 1)

    out = F.scaled_dot_product_attention(
        take(q, bucket.responses).flatten(0, 1),
        path(kp, take(k, bucket.responses)),
        path(vp, take(v, bucket.responses)),
        attn_mask=bucket.mask,
        scale=scaling,
        enable_gqa=gqa,
    )
    response = out.transpose(1, 2).reshape(num * group * longest, *_heads(q))
    return torch.cat([prompt, response])


def _heads(q: torch.Tensor) -> tuple[int, int]:
    return q.shape[0], q.shape[2]


def image_attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # [1, heads, patches, D]
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    vision: VisionInputs | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Full attention inside each image, or window in a block marked `windowed`; equal ones are one batched call.

    -> [1, patches, heads, D]
    """
    if vision is None:
        raise ValueError(f"{VISION}: expected vision= (a row's VisionInputs), got none; encode_images passes it")
    layout = vision.windows if getattr(module, "windowed", False) else vision.images
    assert layout is not None, "the family marked windows and made none"
    heads, dim = query.shape[1], query.shape[3]
    outputs, qkv = [], [x[0] for x in (query, key, value)]
    if layout.order is not None:
        qkv = [x.index_select(1, layout.order) for x in qkv]
    splits = [x.split([n * length for n, length in layout.runs], dim=1) for x in qkv]
    for (n, length), *parts in zip(layout.runs, *splits, strict=True):
        q, k, v = (x.reshape(heads, n, length, dim).transpose(0, 1) for x in parts)
        out = F.scaled_dot_product_attention(q, k, v, scale=scaling)
        outputs.append(out.transpose(1, 2).reshape(n * length, heads, dim))
    whole = torch.cat(outputs)
    return (whole if layout.back is None else whole.index_select(0, layout.back))[None], None


AttentionInterface.register(TEXT, shared_prefix_attention)
AttentionInterface.register(VISION, image_attention)
AttentionMaskInterface.register(TEXT, lambda *args, **kwargs: None)
AttentionMaskInterface.register(VISION, lambda *args, **kwargs: None)
