"""The GRPO loss of logits: the row program over the log-probabilities. The specification."""

from __future__ import annotations

from torch import Tensor

from .._rows import GrpoOutput, PolicyRows
from .._softmax import softmax_spec
from ..config import GrpoConfig
from ..policy_loss.reference import policy_loss
from ..selective_logprob.reference import selective_logprob


def grpo_loss(logits: Tensor, token_ids: Tensor, rows: PolicyRows, config: GrpoConfig, inplace: bool) -> GrpoOutput:
    """`inplace` is permission, not an order: this face leaves the logits as they are."""
    logp, entropy = selective_logprob(logits, token_ids, softmax_spec(config))
    return policy_loss(logp, entropy, rows, config)
