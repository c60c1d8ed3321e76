"""Who attends to whom in a packed row: a layout for each kind of attention, made on the host.

- `AttentionLayout` ("grouped"): gather indices for batches of like lengths; plain torch on any device.
- `PathLayout` (packing/paths.py): key/value paths and cumulative lengths, for varlen libraries.
- `SharedPrefix` ("triton"): tiles, for the kernel that reads a prompt's keys where they lie.
- `DenseLayout` ("dense"): the T x T mask itself, the definition that the others are tested against.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from univg_kernels import SharedPrefix, shared_prefix

from univg_fast.packing.paths import Device, PathLayout, build_paths

Span = tuple[int, int, list[int]]  # a group in its row: start, P, [R_1, ..., R_G]
PATH_FACES = ("paths", "flash_attn", "xformers", "varlen")  # what may compute a PathLayout; "paths" is plain torch
FACES = ("grouped", "dense", "triton", *PATH_FACES)
PADDING = 1.3  # "grouped": rows computed per real row of a batch of responses, at most


@dataclass(frozen=True)
class Responses:
    """Responses of like lengths below prompts of P tokens, in the order of their groups, padded at the end to R.

    Padding is harmless: it comes after every real token of its response in causal order, and its output is never read.
    """

    counts: tuple[int, ...]  # how many of them each of the bucket's groups has
    mask: torch.Tensor  # [R, P + R] bool

    @property
    def rows(self) -> int:
        return sum(self.counts) * len(self.mask)


@dataclass(frozen=True)
class Bucket:
    """K groups of equal P: their prompts are one batch, their responses one for each class of lengths."""

    prompts: tuple[int, int]  # K, P
    classes: tuple[Responses, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Rows of its prompts and of each class in `AttentionLayout.gather`."""
        num, length = self.prompts
        return num * length, *(c.rows for c in self.classes)


@dataclass(frozen=True)
class AttentionLayout:
    """`gather` takes the row's tokens bucket by bucket (prompts, then each class; token 0 where padded).

    `inverse` [T] finds each token's output among the buckets' outputs, which have the order of `gather`. Both are None
    where that is the row's own order, without padding.
    """

    buckets: tuple[Bucket, ...]
    gather: torch.Tensor | None
    inverse: torch.Tensor | None

    def to(self, device: Device, non_blocking: bool = False) -> AttentionLayout:
        def move(x: Any) -> Any:
            return None if x is None else x.to(device, non_blocking=non_blocking)

        buckets = (replace(b, classes=tuple(replace(c, mask=move(c.mask)) for c in b.classes)) for b in self.buckets)
        return AttentionLayout(tuple(buckets), move(self.gather), move(self.inverse))


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
    by_prompt: dict[int, list[Span]] = {}
    for span in spans:
        by_prompt.setdefault(span[1], []).append(span)
    buckets, pieces = [], []
    for prompt, members in by_prompt.items():
        starts = np.array([start for start, _, _ in members])
        pieces.append(starts[:, None] + np.arange(prompt))
        groups = np.repeat(np.arange(len(members)), [len(responses) for _, _, responses in members])
        lengths = np.array([r for _, _, responses in members for r in responses], np.int64)
        firsts = np.array([x for span in members for x in _firsts(span)], np.int64)
        classes = []
        for chosen in _alike(lengths):
            step = np.arange(lengths[chosen].max())
            real = step < lengths[chosen, None]
            pieces.append(np.where(real, firsts[chosen, None] + step, -1))
            mask = torch.ones(len(step), prompt + len(step), dtype=torch.bool)
            mask[:, prompt:].tril_()
            counts = np.bincount(groups[chosen], minlength=len(members))
            classes.append(Responses(tuple(counts.tolist()), mask))
        buckets.append(Bucket((len(members), prompt), tuple(classes)))
    gather = np.concatenate([piece.ravel() for piece in pieces])  # -1 where padded
    if np.array_equal(gather, np.arange(len(gather))):
        return AttentionLayout(tuple(buckets), None, None)
    places = np.flatnonzero(gather >= 0)
    inverse = np.empty(len(places), np.int64)
    inverse[gather[places]] = places
    return AttentionLayout(tuple(buckets), torch.from_numpy(gather.clip(min=0)), torch.from_numpy(inverse))


def _firsts(span: Span) -> list[int]:
    """Where each response begins in the row."""
    start, prompt, responses = span
    return list(accumulate(responses[:-1], initial=start + prompt)) if responses else []


def _alike(lengths: np.ndarray) -> list[np.ndarray]:
    """Indices of responses whose padding to the longest of them stays below `PADDING`: one that runs away is alone."""
    classes: list[list[int]] = []
    longest = real = 0
    for i in np.argsort(-lengths, kind="stable").tolist():
        real += int(lengths[i])
        if classes and longest * (len(classes[-1]) + 1) <= PADDING * real:
            classes[-1].append(i)
        else:
            classes.append([i])
            longest = real = int(lengths[i])
    return [np.sort(chosen) for chosen in classes]


def _dense(spans: list[Span]) -> DenseLayout:
    total = sum(prompt + sum(responses) for _, prompt, responses in spans)
    group, response = np.empty(total, np.int64), np.full(total, -1)  # -1: a prompt, which its whole group sees
    for number, (start, prompt, responses) in enumerate(spans):
        group[start : start + prompt + sum(responses)] = number
        response[start + prompt : start + prompt + sum(responses)] = np.repeat(np.arange(len(responses)), responses)
    same = (response[:, None] == response) | (response == -1)
    mask = (group[:, None] == group) & same & np.tri(total, dtype=bool)
    return DenseLayout(torch.from_numpy(mask))
