"""Weighted cross entropy from hidden states: the specification."""

from __future__ import annotations

import torch
from torch import Tensor

from .._linear_head import into_weight_grad
from .._rows import weight_of_rows
from .._softmax import SoftmaxSpec
from ..linear_logprob.reference import linear_logprob


def linear_ce(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    token_ids: Tensor,
    row_weight: Tensor | float,
    softmax: SoftmaxSpec,
    weight_grad: Tensor | None,
) -> tuple[Tensor, Tensor]:
    logp, _ = linear_logprob(hidden, into_weight_grad(weight, weight_grad), bias, token_ids, softmax)
    weights = weight_of_rows(row_weight, hidden)
    counted = torch.where(weights != 0, weights * logp, 0.0)  # 0·(-inf) = 0
    return -counted.sum(), logp.detach()
