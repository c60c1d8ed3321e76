"""Where the tokens of a packed row attend, as index tensors that the host makes once for a row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 64  # tokens of a tile; no tile holds tokens of two groups, or of a prompt and a response


class SharedPrefix(NamedTuple):
    """A row of T tokens, group after group: `[prompt | r_1 | ... | r_G]`. All tensors int32.

    A token attends to the prompt of its group and, up to itself, to its own segment (its prompt or its response).
    """

    segment_start: Tensor  # [T]: where each token's segment begins
    prompt_start: Tensor  # [T]: where the prompt of each token's group begins
    prompt_end: Tensor  # [T]: and ends
    query_tiles: Tensor  # [n, 5]: begin and end, the part of the prompt it sees whole, begin of the keys of its own
    key_tiles: Tensor  # [m, 4]: begin and end, end of the queries that may see it, 1 for a prompt's tile

    def to(self, device: torch.device | str, non_blocking: bool = False) -> SharedPrefix:
        """A copy on `device`."""
        return SharedPrefix(*(x.to(device, non_blocking=non_blocking) for x in self))


def shared_prefix(spans: Iterable[tuple[int, Sequence[int]]]) -> SharedPrefix:
    """`spans`: one (P, [R_1, ..., R_G]) for each group of the row, in row order, in tokens. Runs on the host.

    Raises: ValueError for a length below 0.
    """
    segments: list[tuple[int, int, int, int]] = []  # length, and three values of each of its tokens
    query_tiles: list[tuple[int, ...]] = []
    key_tiles: list[tuple[int, ...]] = []
    start = 0
    for prompt, responses in spans:
        if prompt < 0 or any(r < 0 for r in responses):
            raise ValueError(f"shared_prefix: lengths must be >= 0, got a prompt of {prompt} and {list(responses)}")
        end = start + prompt
        last = end + sum(responses)
        segments.append((prompt, start, start, end))
        query_tiles += [(a, b, start, start, start) for a, b in _tiles(start, end)]
        key_tiles += [(a, b, last, 1) for a, b in _tiles(start, end)]
        begins, ends, at = [], [], end
        for length in responses:
            segments.append((length, at, start, end))
            begins += [at] * length
            ends += [at + length] * length
            at += length
        for a, b in _tiles(end, last):
            query_tiles.append((a, b, start, end, begins[a - end]))
            key_tiles.append((a, b, ends[b - 1 - end], 0))
        start = last
    table = torch.tensor(segments, dtype=torch.int32).reshape(-1, 4)
    tokens = [column.repeat_interleave(table[:, 0]) for column in table[:, 1:].T]
    tiles = (torch.tensor(t, dtype=torch.int32).reshape(-1, n) for t, n in ((query_tiles, 5), (key_tiles, 4)))
    return SharedPrefix(*tokens, *tiles)


def _tiles(start: int, end: int) -> list[tuple[int, int]]:
    return [(a, min(a + BLOCK, end)) for a in range(start, end, BLOCK)]
