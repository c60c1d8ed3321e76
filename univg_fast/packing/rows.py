"""A packed row: `[prompt | r_1 | ... | r_G]` of one or more groups, with every index tensor the model needs.

All tensors are made here, on the host, so that a training step never asks the device for a size. A response attends
to its prompt and to itself; its positions go on from the prompt's largest mRoPE position + 1 on all three rows. The
hidden state at the prompt's last token predicts the first token of every response.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import numpy as np
import torch

from univg_fast.packing.layout import Layout, build_layout
from univg_fast.packing.positions import ImageTokens, rope_positions
from univg_fast.packing.vision import VisionFamily, VisionInputs, stack_images
from univg_fast.structs import Group


class RowFamily(ImageTokens, VisionFamily, Protocol):
    """What a row needs to know of a model family; `univg_fast.model.Family` has it."""


@dataclass(frozen=True)
class Row:
    """Index tensors of one row of T tokens: N scored tokens of B responses, M image tokens."""

    input_ids: torch.Tensor  # [1, T] int64
    position_ids: torch.Tensor  # [3, 1, T] int64, mRoPE t/h/w
    layout: Layout
    target_rows: torch.Tensor  # [N] int64: the token whose hidden state predicts the target
    target_ids: torch.Tensor  # [N] int64
    cu_seqlens: torch.Tensor  # [B + 1] int64: targets of each response; stays on the host
    image_positions: torch.Tensor  # [M] int64: the row's image placeholder tokens, in order
    pixel_values: torch.Tensor  # [patches, patch_dim]
    vision: VisionInputs

    @property
    def num_tokens(self) -> int:
        return self.input_ids.shape[1]

    def to(self, device: torch.device | str) -> Row:
        """A copy on `device`. The images' grids stay on the host, and so do the responses' lengths: a loss whose rows
        depend on each other can only cut the row up where it reads them, and copies them itself."""
        moved: dict[str, Any] = {"layout": self.layout.to(device, non_blocking=True), "vision": self.vision.to(device)}
        tensors = {f.name: x for f in fields(self) if isinstance(x := getattr(self, f.name), torch.Tensor)}
        moved |= {name: x.to(device, non_blocking=True) for name, x in tensors.items() if name != "cu_seqlens"}
        return replace(self, **moved)


def build_row(
    groups: Sequence[Group], family: RowFamily, attention: str = "grouped", dtype: torch.dtype = torch.float32
) -> Row:
    """Lay out `groups` one after the other. `attention`: the face that will attend (packing/layout.py); `dtype`: of the
    pixels, the tower's, as half of the bytes then go to the device."""
    ids: list[np.ndarray] = []
    total = sum(len(g.sample.prompt_ids) + sum(map(len, g.responses)) for g in groups)
    positions = np.empty((3, total), np.int64)
    spans: list[tuple[int, int, list[int]]] = []  # (start, P, [R, ...])
    target_rows: list[np.ndarray] = []
    target_ids: list[np.ndarray] = []
    cu_seqlens, start = [0], 0
    for group in groups:
        prompt = group.sample.prompt_ids
        prompt_positions, following = rope_positions(prompt, group.sample.image_grid_thw, family)
        ids.append(prompt)
        last = start + len(prompt) - 1
        at = last + 1
        positions[:, start:at] = prompt_positions
        for response in group.responses:
            n = len(response)
            ids.append(response)
            positions[:, at : at + n] = np.arange(following, following + n)
            target_rows.append(np.concatenate([[last], np.arange(at, at + n - 1)])[:n])
            target_ids.append(response)
            cu_seqlens.append(cu_seqlens[-1] + n)
            at += n
        spans.append((start, len(prompt), [len(r) for r in group.responses]))
        start = at
    flat = np.concatenate(ids)
    prompt_mask = np.concatenate([_prompt_mask(span) for span in spans])
    pixels, vision = stack_images([g.sample for g in groups], family, dtype)
    empty = [np.zeros(0, np.int64)]
    return Row(
        input_ids=torch.from_numpy(flat)[None],
        position_ids=torch.from_numpy(positions)[:, None],
        layout=build_layout(spans, attention),
        target_rows=torch.from_numpy(np.concatenate(target_rows or empty)),
        target_ids=torch.from_numpy(np.concatenate(target_ids or empty)),
        cu_seqlens=torch.tensor(cu_seqlens),
        # only the prompt's placeholders stand for images: a sampled placeholder id in a response is just a token
        image_positions=torch.from_numpy(np.flatnonzero((flat == family.image_token_id) & prompt_mask)),
        pixel_values=pixels,
        vision=vision,
    )


def _prompt_mask(span: tuple[int, int, list[int]]) -> np.ndarray:
    _, prompt, responses = span
    return np.concatenate([np.ones(prompt, bool), np.zeros(sum(responses), bool)])
