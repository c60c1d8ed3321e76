"""The vision tower's attention: full inside each image, or inside each window; equal sizes are batched."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface

from univg_fast.packing.vision import AttentionRuns, VisionInputs

VISION = "univg_images"


def image_attention(
    module: Any,
    query: torch.Tensor,  # [1, heads, patches, D]
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    vision: VisionInputs | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Full attention inside each image, or inside each window where `module.windowed`. -> [1, patches, heads, D].

    transformers keeps a block's own sequence lengths to itself, hence the mark on the module.
    """
    windowed = getattr(module, "windowed", False)
    runs = None if vision is None else vision.windows if windowed else vision.images
    if runs is None:
        raise ValueError(
            f"{VISION}: expected vision= (a row's VisionInputs, with windows for a windowed block), got {vision}; "
            "use another attn_implementation for plain forward passes"
        )
    q, k, v = query[0], key[0], value[0]
    if runs.order is not None:
        q, k, v = (x.index_select(1, runs.order) for x in (q, k, v))
    out = _attend(q, k, v, runs, scaling)
    return (out if runs.back is None else out.index_select(0, runs.back))[None], None


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, runs: AttentionRuns, scaling: float | None
) -> torch.Tensor:
    """[heads, patches, D] -> [patches, heads, D]; one batched call a run."""
    heads, _, dim = q.shape
    outputs = []
    splits = [x.split([n * length for n, length in runs.runs], dim=1) for x in (q, k, v)]
    for (n, length), *qkv in zip(runs.runs, *splits, strict=True):
        queries, keys, values = (x.reshape(heads, n, length, dim).transpose(0, 1) for x in qkv)
        out = F.scaled_dot_product_attention(queries, keys, values, scale=scaling)
        outputs.append(out.transpose(1, 2).reshape(n * length, heads, dim))
    return torch.cat(outputs)


AttentionInterface.register(VISION, image_attention)
AttentionMaskInterface.register(VISION, lambda *args, **kwargs: None)
