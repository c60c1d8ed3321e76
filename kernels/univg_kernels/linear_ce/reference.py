"""Weighted cross entropy from hidden states: the specification."""

from __future__ import annotations

import torch
from torch import Tensor

from ..linear_logprob.reference import linear_logprob


def linear_ce(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, token_ids: Tensor, row_weight: Tensor
) -> tuple[Tensor, Tensor]:
    logp, _ = linear_logprob(hidden, weight, bias, token_ids, 1.0)
    counted = torch.where(row_weight != 0, row_weight.to(logp.dtype) * logp, 0.0)  # 0·(-inf) = 0
    return -counted.sum(), logp.detach()
