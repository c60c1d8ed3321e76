"""log p(token) and entropy from hidden states: the specification."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..selective_logprob import reference


def linear_logprob(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, token_ids: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    return reference.selective_logprob(F.linear(hidden, weight, bias), token_ids, temperature)
