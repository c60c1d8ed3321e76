"""The specification of `shared_prefix_attention`: one softmax under a dense mask, in fp32 or above."""

from __future__ import annotations

import torch
from torch import Tensor

from .._rows import math_dtype
from .layout import SharedPrefix


def mask(layout: SharedPrefix) -> Tensor:
    """[T, T] bool: whether the token of a row sees the token of a column."""
    column = torch.arange(len(layout.segment_start), device=layout.segment_start.device)
    prompt = (column >= layout.prompt_start[:, None]) & (column < layout.prompt_end[:, None])
    own = (column >= layout.segment_start[:, None]) & (column <= column[:, None])
    in_prompt = layout.segment_start == layout.prompt_start  # causal there; an empty prompt's responses see no other
    return torch.where((in_prompt & (column < layout.prompt_end))[:, None], own, prompt | own)


def shared_prefix_attention(query: Tensor, key: Tensor, value: Tensor, layout: SharedPrefix, scale: float) -> Tensor:
    dtype, share = math_dtype(query), query.shape[1] // key.shape[1]
    k, v = (x.to(dtype).repeat_interleave(share, 1) for x in (key, value))
    scores = torch.einsum("qhd,khd->hqk", query.to(dtype), k) * scale
    weights = scores.masked_fill(~mask(layout), float("-inf")).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, v).to(query.dtype)
