"""log p(token) and entropy of logits rows: the specification."""

from __future__ import annotations

import torch
from torch import Tensor

from .._rows import math_dtype
from .._softmax import SoftmaxSpec


def selective_logprob(logits: Tensor, token_ids: Tensor, softmax: SoftmaxSpec) -> tuple[Tensor, Tensor]:
    x = logits[:, : softmax.vocab_size].to(math_dtype(logits)) * softmax.scale
    if softmax.cap:
        x = softmax.cap * torch.tanh(x / softmax.cap)
    log_p = torch.log_softmax(x, dim=-1)
    logp = log_p.gather(-1, token_ids.long()[:, None])[:, 0]
    entropy = -(log_p.exp() * log_p.masked_fill(log_p == -torch.inf, 0.0)).sum(-1)  # 0·log 0 = 0
    return logp, entropy
