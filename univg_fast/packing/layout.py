"""Who attends to whom in a packed row, as gather indices for batched attention without a T x T mask.

Groups with the same prompt length and the same number of responses form a bucket; inside a bucket prompts are one
batch `[K, P]` and responses one batch `[K, G, R]`, padded at the end to the bucket's longest response. Padding is
harmless: it comes after every real token of its response in causal order, and its output is never read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Bucket:
    """Groups of equal P and G. `responses` is [K, G, R] row indices (0 where padded), None if R or G is 0."""

    prompts: torch.Tensor  # [K, P] int64
    responses: torch.Tensor | None
    mask: torch.Tensor | None  # [R, P + R] bool, causal from the bottom right


@dataclass(frozen=True)
class AttentionLayout:
    """`inverse` [T] picks each row token's output from the concatenated outputs of all buckets."""

    buckets: tuple[Bucket, ...]
    inverse: torch.Tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> AttentionLayout:
        def move(x: Any) -> Any:
            return None if x is None else x.to(device, non_blocking=non_blocking)

        moved = (
            replace(b, prompts=move(b.prompts), responses=move(b.responses), mask=move(b.mask)) for b in self.buckets
        )
        return AttentionLayout(tuple(moved), self.inverse.to(device, non_blocking=non_blocking))


def build_layout(spans: list[tuple[int, int, list[int]]]) -> AttentionLayout:
    """`spans`: one (start, P, [R_1, ..., R_G]) per group, in row order."""
    by_shape: dict[tuple[int, int], list[tuple[int, list[int]]]] = {}
    for start, prompt, responses in spans:
        by_shape.setdefault((prompt, len(responses)), []).append((start, responses))
    total = sum(prompt + sum(responses) for _, prompt, responses in spans)
    inverse = np.empty(total, np.int64)
    buckets, done = [], 0
    for (prompt, _), members in by_shape.items():
        starts = np.array([start for start, _ in members])
        prompts = starts[:, None] + np.arange(prompt)
        inverse[prompts] = done + np.arange(prompts.size).reshape(prompts.shape)
        done += prompts.size
        longest = max((r for _, responses in members for r in responses), default=0)
        if longest == 0:
            buckets.append(Bucket(torch.from_numpy(prompts), None, None))
            continue
        lengths = np.array([responses for _, responses in members])  # [K, G]
        first = starts[:, None] + prompt + np.cumsum(lengths, axis=1) - lengths
        valid = np.arange(longest) < lengths[..., None]  # [K, G, R]
        index = np.where(valid, first[..., None] + np.arange(longest), 0)
        place = done + np.arange(index.size).reshape(index.shape)
        inverse[index[valid]] = place[valid]
        done += index.size
        mask = torch.ones(longest, prompt + longest, dtype=torch.bool).tril(prompt)
        buckets.append(Bucket(torch.from_numpy(prompts), torch.from_numpy(index), mask))
    return AttentionLayout(tuple(buckets), torch.from_numpy(inverse))
