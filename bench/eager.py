"""What a trainer writes without a fused head, in plain torch: baseline, measure of rounding, and in fp64 the truth.

On top of the log-probabilities, which cost O(N·V), lies the row program, which costs O(N): in fp64 the specification,
with proofs of its own in `tests/ops`; else our compiled `policy_loss`, so that launches of plain torch slow no peer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import univg_kernels as uk
from torch import Tensor

from .problem import Rows

LogP = Callable[[Tensor, Tensor], Tensor]  # (logits [N, V], token_ids [N]) -> [N]
LogPEntropy = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def log_softmax(z: Tensor, ids: Tensor) -> Tensor:
    return torch.log_softmax(z, -1).gather(1, ids[:, None])[:, 0]


def logsumexp(z: Tensor, ids: Tensor) -> Tensor:
    return z.gather(1, ids[:, None])[:, 0] - torch.logsumexp(z, -1)


def logp_entropy(z: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    log_p = torch.log_softmax(z, -1)
    return log_p.gather(1, ids[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)


def linear_log_softmax(hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    return log_softmax(hidden @ weight.t(), ids)


def linear_logp_entropy(hidden: Tensor, weight: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    return logp_entropy(hidden @ weight.t(), ids)


def policy(logp: Tensor, rows: Rows, config: uk.GrpoConfig) -> Tensor:
    backend: uk.Backend = "reference" if logp.dtype == torch.float64 else "auto"
    return uk.policy_loss(logp, **rows.policy, config=config, backend=backend).loss


@cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """torch.compile for the shape at hand: static, as a user with fixed shapes would have it."""
    torch._dynamo.config.recompile_limit = 64  # of one function: each shape and dtype is one
    return torch.compile(function, dynamic=False, fullgraph=True)
