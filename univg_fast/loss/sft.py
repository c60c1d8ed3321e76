"""Stage 1: cross entropy of the target tokens."""

from __future__ import annotations

import torch
from univg_kernels import Backend, linear_ce

from univg_fast.model.packed import Head
from univg_fast.packing import Row


def sft_head(row: Row, num_tokens: float, backend: Backend = "auto") -> Head:
    """Sum over the row's targets of -log p / `num_tokens` (the step's, over all rows and ranks) -> (loss, logp [N])."""

    def head(hidden: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return linear_ce(hidden, weight, row.target_ids, row_weight=1.0 / num_tokens, backend=backend)

    return head
