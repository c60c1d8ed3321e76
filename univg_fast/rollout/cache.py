"""Key/value caches of a rollout: a prompt's keys and values are stored once and read by all of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from univg_fast.model.attention import shared_prefix_attention
from univg_fast.packing.pinning import sent

FIRST = 128  # own positions that a static step looks at in the beginning; doubled when they are full

Kept = dict[int, list[tuple[Tensor, Tensor]]]  # of each layer, and there of each prompt: keys and values [h, P, D]


@dataclass(frozen=True)
class Prefill:
    """Runs a packed row of prompts and adds their keys and values to `kept`."""

    layout: Any
    lengths: Sequence[int]  # of the row's prompts
    kept: Kept

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scaling: float) -> Tensor:
        prompts = (x[0].split(list(self.lengths), dim=1) for x in (k, v))
        self.kept.setdefault(layer, []).extend(zip(*prompts, strict=True))
        return shared_prefix_attention(None, q, k, v, None, scaling, self.layout)[0]


class DecodeCache:
    """Prompts' keys and values [S, h, P, D] (padded, masked by `bias`) and the B rows' own [B, h, L, D].

    Rows of a prompt stand together. Where rows have left, prompts have unequal numbers of them; attention then works
    on a grid [S, most rows of a prompt], whose empty cells hold any row.

    `static`: a step looks at more own positions than there are, masked, so that shapes hardly ever change and a step
    can be replayed.
    """

    def __init__(self, kept: Kept, lengths: list[int], group: int, max_new_tokens: int, static: bool) -> None:
        """`kept` is emptied."""
        device, dtype = next((keys.device, keys.dtype) for keys, _ in next(iter(kept.values())))
        self.prompts: dict[int, list[Tensor]] = {}
        self.own: dict[int, list[Tensor]] = {}
        for layer in list(kept):  # one at a time, so that only one layer's exist twice
            pair = [_padded(parts, max(lengths)) for parts in zip(*kept.pop(layer), strict=True)]
            shape = (len(lengths) * group, pair[0].shape[1], max_new_tokens, pair[0].shape[3])
            self.prompts[layer] = pair
            self.own[layer] = [x.new_zeros(shape) for x in pair]  # zeros: what is masked must still be a number
        valid = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]  # [S, P]
        self.bias = sent(torch.where(valid, 0.0, float("-inf")).to(dtype), device)[:, None, None]
        self.static = static
        self.length = min(FIRST, max_new_tokens) if static else 1  # own positions that a step looks at
        self.at = torch.zeros(1, dtype=torch.int64, device=device)  # where a step writes
        self.own_bias = torch.full((max_new_tokens,), float("-inf"), dtype=dtype, device=device)
        self.own_bias[0] = 0
        self._arrange(np.repeat(np.arange(len(lengths)), group))

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scaling: float) -> Tensor:
        """q [B, H, 1, D], k and v [B, h, 1, D] -> [B, 1, H, D]; one softmax over prompt and own tokens."""
        for kept, new in zip(self.own[layer], (k, v), strict=True):
            kept.index_copy_(2, self.at, new)
        keys, values = (x[:, :, : self.length] for x in self.own[layer])
        prompt_keys, prompt_values = self.prompts[layer]
        num_rows, heads, length, dim = q.shape[0], prompt_keys.shape[1], prompt_keys.shape[2], q.shape[3]
        query = q.reshape(num_rows, heads, -1, dim) * scaling  # [B, h, query heads of a key head, D]
        own = query @ keys.mT
        if self.static:
            own = own + self.own_bias[: self.length]
        scores = torch.cat([self._fold(query) @ prompt_keys.mT + self.bias, self._fold(own)], dim=-1)
        weights = scores.softmax(-1, dtype=torch.float32).to(q.dtype)
        out = self._unfold(weights[..., :length] @ prompt_values) + self._unfold(weights[..., length:]) @ values
        return out.reshape(num_rows, 1, -1, dim)

    def advance(self) -> None:
        """The next step writes one further. On the device only, so that a replayed step does it too."""
        self.at.add_(1)
        self.own_bias.index_fill_(0, self.at, 0.0)

    def reach(self, length: int) -> bool:
        """Before a step that writes the last of `length` own positions: whether it has other shapes than the one
        before it."""
        if length <= self.length:
            return False
        self.length = min(2 * self.length, len(self.own_bias)) if self.static else length
        return True

    def keep(self, rows: np.ndarray) -> None:
        """Only these rows go on (ascending); prompts without any leave too."""
        prompts, owners = np.unique(self.owners[rows], return_inverse=True)
        device = self.at.device
        index = torch.from_numpy(rows).to(device)
        for pair in self.own.values():
            pair[:] = [x.index_select(0, index) for x in pair]
        if len(prompts) < len(self.bias):
            index = torch.from_numpy(prompts).to(device)
            self.bias = self.bias.index_select(0, index)
            for pair in self.prompts.values():
                pair[:] = [x.index_select(0, index) for x in pair]
        self._arrange(owners)

    def _arrange(self, owners: np.ndarray) -> None:
        """Lay out the grid for rows that belong to these prompts [B] (ascending, without gaps)."""
        counts = np.bincount(owners)
        self.owners, self.most = owners, int(counts.max())
        self.cells: Tensor | None = None  # the row of each cell of the grid; None: row i is in cell i
        if (counts != self.most).any():
            place = owners * self.most + np.arange(len(owners)) - (np.cumsum(counts) - counts)[owners]
            cells = np.zeros(len(counts) * self.most, np.int64)
            cells[place] = np.arange(len(owners))
            self.cells = torch.from_numpy(cells).to(self.at.device)
            self.place = torch.from_numpy(place).to(self.at.device)  # the cell of each row

    def _fold(self, x: Tensor) -> Tensor:
        """[B, h, share, X] -> [S, h, rows of a prompt * share, X]."""
        x = x if self.cells is None else x.index_select(0, self.cells)
        _, heads, share, width = x.shape
        return x.view(-1, self.most, heads, share, width).transpose(1, 2).reshape(-1, heads, self.most * share, width)

    def _unfold(self, x: Tensor) -> Tensor:
        num, heads, _, width = x.shape
        x = x.view(num, heads, self.most, -1, width).transpose(1, 2).reshape(num * self.most, heads, -1, width)
        return x if self.cells is None else x.index_select(0, self.place)


def _padded(parts: Sequence[Tensor], length: int) -> Tensor:
    """[h, P, D] of each of S prompts -> [S, h, length, D], zeros behind; contiguous, as each step multiplies by it."""
    heads, _, dim = parts[0].shape
    out = parts[0].new_zeros(len(parts), heads, length, dim)
    for prompt, part in zip(out, parts, strict=True):
        prompt[:, : part.shape[1]] = part
    return out
