"""The GRPO loss of hidden states: the row program over the linear head. The specification."""

from __future__ import annotations

from torch import Tensor

from .._rows import GrpoOutput, PolicyRows
from ..config import GrpoConfig
from ..linear_logprob.reference import linear_logprob
from ..policy_loss.reference import policy_loss


def linear_grpo_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    token_ids: Tensor,
    rows: PolicyRows,
    config: GrpoConfig,
) -> GrpoOutput:
    logp, entropy = linear_logprob(hidden, weight, bias, token_ids, config.temperature)
    return policy_loss(logp, entropy.detach(), rows, config)
