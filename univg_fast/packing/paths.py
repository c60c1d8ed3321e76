"""A packed row as query segments and key/value paths, the shape that varlen attention takes.

The row `[prompt | r_1 | ... | r_G]` is already its query segments, end to end. The keys of a segment are its whole
path: the prompt's for the prompt, prompt and own for a response. A segment's queries are the last of its path, so that
"causal from the bottom right" is who sees whom. A prompt stands in memory G + 1 times, for one layer at a time.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from itertools import accumulate
from typing import Any

import numpy as np
import torch

Device = torch.device | str


@dataclass(frozen=True)
class PathLayout:
    """S segments of a row of T tokens; L rows of keys. `face` is who computes it; lengths are Python ints, on purpose:
    a library that is given a tensor would wait for the device to read it.

    `first` and `shared` undo `index` for gradients: every token stands in the paths at `first`, and those tokens that
    stand there C times, C > 1, are listed with all their places, so that their sum needs no atomic addition.
    """

    face: str
    index: torch.Tensor  # [L] int64: the row's token at each place of the paths
    cu_seqlens_q: torch.Tensor  # [S + 1] int32
    cu_seqlens_k: torch.Tensor  # [S + 1] int32
    lengths_q: tuple[int, ...]
    lengths_k: tuple[int, ...]
    first: torch.Tensor  # [T] int64
    shared: tuple[tuple[torch.Tensor, torch.Tensor], ...]  # (tokens [n], places [n, C]) int64, one pair for each C

    @property
    def max_q(self) -> int:
        return max(self.lengths_q)

    @property
    def max_k(self) -> int:
        return max(self.lengths_k)

    def to(self, device: Device, non_blocking: bool = False) -> PathLayout:
        def move(x: torch.Tensor) -> torch.Tensor:
            return x.to(device, non_blocking=non_blocking)

        moved: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        moved = {name: move(x) for name, x in moved.items() if isinstance(x, torch.Tensor)}
        return replace(self, **moved, shared=tuple((move(tokens), move(places)) for tokens, places in self.shared))


def build_paths(spans: list[tuple[int, int, list[int]]], face: str) -> PathLayout:
    """`spans`: (start, P, [R_1, ..., R_G]) of each group in row order, each R at least 1."""
    index: list[np.ndarray] = []
    lengths_q: list[int] = []
    lengths_k: list[int] = []
    shared: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}  # C -> (tokens, places) of each group
    place = 0
    for start, prompt, responses in spans:
        tokens, copies, at = start + np.arange(prompt), [place], start + prompt
        index.append(tokens)
        place += prompt
        for length in responses:
            index += [tokens, at + np.arange(length)]
            copies.append(place)
            place, at = place + prompt + length, at + length
        lengths_q += [prompt, *responses]
        lengths_k += [prompt, *(prompt + length for length in responses)]
        if responses:
            places = np.array(copies) + np.arange(prompt)[:, None]
            shared.setdefault(len(copies), []).append((tokens, places))
    flat = np.concatenate(index)
    return PathLayout(
        face=face,
        index=torch.from_numpy(flat),
        cu_seqlens_q=torch.tensor([0, *accumulate(lengths_q)], dtype=torch.int32),
        cu_seqlens_k=torch.tensor([0, *accumulate(lengths_k)], dtype=torch.int32),
        lengths_q=tuple(lengths_q),
        lengths_k=tuple(lengths_k),
        first=torch.from_numpy(np.unique(flat, return_index=True)[1]),
        shared=tuple(
            (torch.from_numpy(np.concatenate(tokens)), torch.from_numpy(np.concatenate(places)))
            for tokens, places in (zip(*found, strict=True) for found in shared.values())
        ),
    )
