"""The door of `shared_prefix_attention`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._checks import FLOATS, check_positive, check_tensor
from .._dispatch import Backend, face
from .layout import SharedPrefix, shared_prefix

__all__ = ["SharedPrefix", "shared_prefix", "shared_prefix_attention"]


def shared_prefix_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: SharedPrefix,
    *,
    scale: float | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Attention of packed rows `[prompt | r_1 | ... | r_G]`: each response sees its prompt and, causally, itself.

    The prompt's keys and values are read where they lie, by all of its responses: they are never gathered, and their
    gradients are summed over the responses in fp32. Nothing of the size [T, T] exists (but in the reference, which is
    also what "auto" takes on the CPU). Deterministic.

    Args:
        query: [T, heads, D], floating point, D <= 256.
        key, value: [T, kv_heads, D], of query's dtype; heads is a multiple of kv_heads.
        layout: `shared_prefix([(P, [R_1, ..., R_G]), ...])`, moved to query's device.
        scale: of the scores; D^-0.5 if not given.
    Returns: [T, heads, D], of query's dtype; softmax and sums in fp32 (fp64 for fp64 input).
    Raises: ValueError for wrong shapes, dtypes or devices, and for a layout of another number of tokens.
    Source: the layout of shared-prefix training (arXiv 2506.05433); online softmax: arXiv 2205.14135.
    """
    op = "shared_prefix_attention"
    q = check_tensor(op, "query", query, (None, None, None), FLOATS)
    tokens, heads, dim = q.shape
    k = check_tensor(op, "key", key, (tokens, None, dim), (q.dtype,), q.device)
    v = check_tensor(op, "value", value, tuple(k.shape), (q.dtype,), q.device)
    if k.shape[1] == 0 or heads % k.shape[1] != 0:
        raise ValueError(f"{op}: heads of query must be a multiple of those of key, got {heads} and {k.shape[1]}")
    if not 0 < dim <= 256:
        raise ValueError(f"{op}: heads must be of 1 to 256 channels, got {dim}")
    if not isinstance(layout, SharedPrefix):
        raise ValueError(f"{op}: layout must be a SharedPrefix, got {type(layout).__name__}; make it by shared_prefix")
    for name in ("segment_start", "prompt_start", "prompt_end"):
        remedy = "make it by shared_prefix, of this row's lengths"
        check_tensor(op, f"layout.{name}", getattr(layout, name), (tokens,), (torch.int32,), q.device, remedy)
    for name, columns in (("query_tiles", 5), ("key_tiles", 4)):
        check_tensor(op, f"layout.{name}", getattr(layout, name), (None, columns), (torch.int32,), q.device)
    scale = 1.0 / math.sqrt(dim) if scale is None else check_positive(op, "scale", scale)
    return face(op, q.device, backend).shared_prefix_attention(q, k, v, layout, scale)
