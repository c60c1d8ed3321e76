"""The rows of batches that are scored again: by the old policy, the reference, and the policy in every iteration."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import torch

from .prefix import Batch, SharedRow, plain, share_prompts


@dataclass(eq=False)
class _Kept:
    rule: tuple[Any, ...]
    batch: Batch
    row: SharedRow
    left: int  # updates to come


class Rows:
    """Each batch is laid out once, and forgotten with the last of its `updates` (passes that have a gradient).

    A host makes its [B, L] tensors anew for every pass: a batch is recognised by what they hold, of which the layout
    needs a copy anyway. At most `batches` are kept, and no pixels.
    """

    def __init__(self, batches: int, updates: int) -> None:
        self._kept: deque[_Kept] = deque(maxlen=max(batches, 1))
        self._updates = updates

    def __len__(self) -> int:
        return len(self._kept)

    def of(self, model: Any, batch: Batch, device: torch.device, *, keep: bool) -> SharedRow:
        """`share_prompts` of these. batch: copies, which nobody writes to. keep: whether there are updates to come."""
        base = plain(model)
        rule = (type(base), base.config.image_token_id, base.config.vision_config, device)
        found = [k for k in self._kept if k.rule == rule and _same(k.batch, batch)]
        if not found:
            with torch.inference_mode(False):  # of a reference's pass; the policy's has to save what is in the row
                found = [_Kept(rule, batch, share_prompts(model, batch, device), self._updates)]
            if keep:
                self._kept.append(found[0])
        found[0].left -= torch.is_grad_enabled()
        if found[0].left <= 0 and found[0] in self._kept:
            self._kept.remove(found[0])
        return found[0].row


def _same(a: Batch, b: Batch) -> bool:
    alike = all(torch.equal(x, y) for x, y in ((a.ids, b.ids), (a.mask, b.mask), (a.grids, b.grids)))
    return alike and (a.prompt_length, a.members) == (b.prompt_length, b.members)
