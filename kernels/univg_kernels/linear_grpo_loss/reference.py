"""The GRPO loss of hidden states: the row program over the linear head. The specification."""

from __future__ import annotations

import torch

from .._linear_head import LinearPolicy, into_weight_grad
from .._rows import GrpoOutput, PolicyRows
from .._softmax import softmax_spec
from ..config import GrpoConfig
from ..linear_logprob.reference import linear_logprob
from ..policy_loss.reference import policy_loss


def linear_grpo_loss(policy: LinearPolicy, rows: PolicyRows, config: GrpoConfig) -> GrpoOutput:
    softmax = softmax_spec(config)
    if policy.reference is not None:
        with torch.no_grad():
            ref_logp, _ = linear_logprob(*policy.reference, policy.token_ids, softmax)
        rows = rows._replace(ref_logp=ref_logp)
    weight = into_weight_grad(policy.weight, policy.weight_grad)
    logp, entropy = linear_logprob(policy.hidden, weight, policy.bias, policy.token_ids, softmax)
    return policy_loss(logp, entropy, rows, config)
