"""log p(token) and entropy from hidden states: the specification."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .._softmax import SoftmaxSpec
from ..selective_logprob import reference


def linear_logprob(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, token_ids: Tensor, softmax: SoftmaxSpec
) -> tuple[Tensor, Tensor]:
    return reference.selective_logprob(F.linear(hidden, weight, bias), token_ids, softmax)
