"""Rows for the tests of attention: where their groups stand, what is drawn for them, and a face at work on them."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from univg_fast.model.attention import shared_prefix_attention
from univg_fast.packing.layout import Span, build_layout

HEADS, KV_HEADS, DIM = 4, 2, 8
FACES = ("grouped", "paths")


def spans_of(groups: list[tuple[int, list[int]]]) -> list[Span]:
    spans, start = [], 0
    for prompt, responses in groups:
        spans.append((start, prompt, responses))
        start += prompt + sum(responses)
    return spans


def total(spans: list[Span]) -> int:
    return sum(prompt + sum(responses) for _, prompt, responses in spans)


def draw(tokens: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> list[torch.Tensor]:
    """q, k, v and the output's gradient, as transformers hands them over: heads before tokens, a batch of one."""
    generator = torch.Generator().manual_seed(seed)
    heads = (HEADS, KV_HEADS, KV_HEADS)
    qkv = [torch.randn(1, h, tokens, DIM, generator=generator, dtype=dtype).requires_grad_() for h in heads]
    return [*qkv, torch.randn(1, tokens, HEADS, DIM, generator=generator, dtype=dtype)]


def attend(face: str, spans: list[Span], qkv: list[torch.Tensor], scaling: float | None = None) -> torch.Tensor:
    return shared_prefix_attention(None, *qkv, None, scaling, build_layout(spans, face))[0]


def with_gradients(face: str, spans: list[Span], drawn: list[torch.Tensor], **more: Any) -> list[torch.Tensor]:
    *qkv, weights = drawn
    out = attend(face, spans, qkv, **more)
    return [out, *torch.autograd.grad(out, qkv, weights)]


class Written(TorchDispatchMode):
    """Elements of the largest tensor that any operation made, and of all of them together (views are free)."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = self.all = 0
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.names.add(func._schema.name)
        aliases = any(r.alias_info is not None for r in func._schema.returns)
        for x in () if aliases else out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, torch.Tensor):
                self.largest, self.all = max(self.largest, x.numel()), self.all + x.numel()
        return out
