"""Who attends to whom in a packed row: a layout for each kind of attention, made on the host.

- `AttentionLayout` ("grouped"): gather indices for batches of equal lengths; plain torch on any device.
- `PathLayout` (packing/paths.py): key/value paths and cumulative lengths, for varlen libraries.
- `SharedPrefix` ("triton"): tiles, for the kernel that reads a prompt's keys where they lie.
- `DenseLayout` ("dense"): the T x T mask itself, the definition that the others are tested against.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from univg_kernels import SharedPrefix, shared_prefix

from univg_fast.packing.paths import Device, PathLayout, build_paths

Span = tuple[int, int, list[int]]  # a group in its row: start, P, [R_1, ..., R_G]
PATH_FACES = ("paths", "flash_attn", "xformers", "varlen")  # what may compute a PathLayout; "paths" is plain torch
FACES = ("grouped", "dense", "triton", *PATH_FACES)


@dataclass(frozen=True)
class Bucket:
    """K groups of equal P and G, responses padded at the end to R. `mask` [R, P + R] bool is None if there are none.

    Padding is harmless: it comes after every real token of its response in causal order, and its output is never read.
    """

    shape: tuple[int, int, int, int]  # K, P, G, R
    mask: torch.Tensor | None

    @property
    def sizes(self) -> tuple[int, int]:
        """Rows of its prompts and of its responses in `AttentionLayout.gather`."""
        num, prompt, group, longest = self.shape
        return num * prompt, num * group * longest


@dataclass(frozen=True)
class AttentionLayout:
    """`gather` takes the row's tokens bucket by bucket (prompts, then responses; token 0 where padded).

    `inverse` [T] finds each token's output among the buckets' outputs, which have the order of `gather`.
    """

    buckets: tuple[Bucket, ...]
    gather: torch.Tensor
    inverse: torch.Tensor

    def to(self, device: Device, non_blocking: bool = False) -> AttentionLayout:
        def move(x: torch.Tensor) -> torch.Tensor:
            return x.to(device, non_blocking=non_blocking)

        moved = (b if b.mask is None else replace(b, mask=move(b.mask)) for b in self.buckets)
        return AttentionLayout(tuple(moved), move(self.gather), move(self.inverse))


@dataclass(frozen=True)
class DenseLayout:
    """`mask` [T, T] bool: which key (column) a query (row) sees. Quadratic in T: for tests and tiny runs."""

    mask: torch.Tensor

    def to(self, device: Device, non_blocking: bool = False) -> DenseLayout:
        return DenseLayout(self.mask.to(device, non_blocking=non_blocking))


Layout = AttentionLayout | PathLayout | SharedPrefix | DenseLayout


def build_layout(spans: list[Span], face: str = "grouped") -> Layout:
    """The layout that `face` computes. `spans`: the row's groups in order, together covering it."""
    if face == "dense":
        return _dense(spans)
    simple = [_simplified(span) for span in spans]
    if face == "grouped":
        return _grouped(simple)
    if face == "triton":
        return shared_prefix((prompt, responses) for _, prompt, responses in simple)
    if face in PATH_FACES:
        return build_paths(simple, face)
    raise ValueError(f"build_layout: expected face to be one of {', '.join(FACES)}, got {face!r}")


def _simplified(span: Span) -> Span:
    """Without empty responses; and a single response is its prompt's continuation, with nothing to share."""
    start, prompt, responses = span
    responses = [r for r in responses if r]
    return (start, prompt + responses[0], []) if len(responses) == 1 else (start, prompt, responses)


def _grouped(spans: list[Span]) -> AttentionLayout:
    by_shape: dict[tuple[int, int], list[tuple[int, list[int]]]] = {}
    for start, prompt, responses in spans:
        by_shape.setdefault((prompt, len(responses)), []).append((start, responses))
    total = sum(prompt + sum(responses) for _, prompt, responses in spans)
    inverse = np.empty(total, np.int64)
    gather, buckets, done = [], [], 0
    for (prompt, group), members in by_shape.items():
        starts = np.array([start for start, _ in members])
        lengths = np.array([responses for _, responses in members], np.int64).reshape(len(members), group)  # [K, G]
        longest = int(lengths.max(initial=0))
        first = starts[:, None] + prompt + np.cumsum(lengths, axis=1) - lengths
        own = first[..., None] + np.arange(longest)  # [K, G, R]
        real = np.arange(longest) < lengths[..., None]
        prompts = (starts[:, None] + np.arange(prompt)).ravel()
        index = np.concatenate([prompts, np.where(real, own, 0).ravel()])
        valid = np.concatenate([np.ones(len(prompts), bool), real.ravel()])
        inverse[index[valid]] = done + np.flatnonzero(valid)
        gather.append(index)
        done += len(index)
        mask = torch.ones(longest, prompt + longest, dtype=torch.bool).tril(prompt) if longest else None
        buckets.append(Bucket((len(members), prompt, group, longest), mask))
    return AttentionLayout(tuple(buckets), torch.from_numpy(np.concatenate(gather)), torch.from_numpy(inverse))


def _dense(spans: list[Span]) -> DenseLayout:
    total = sum(prompt + sum(responses) for _, prompt, responses in spans)
    group, response = np.empty(total, np.int64), np.full(total, -1)  # -1: a prompt, which its whole group sees
    for number, (start, prompt, responses) in enumerate(spans):
        group[start : start + prompt + sum(responses)] = number
        response[start + prompt : start + prompt + sum(responses)] = np.repeat(np.arange(len(responses)), responses)
    same = (response[:, None] == response) | (response == -1)
    mask = (group[:, None] == group) & same & np.tri(total, dtype=bool)
    return DenseLayout(torch.from_numpy(mask))
