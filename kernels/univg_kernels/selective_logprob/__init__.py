"""The door of `selective_logprob`."""

from __future__ import annotations

from torch import Tensor

from .._checks import check_ids, check_logits, check_positive
from .._dispatch import Backend, face


def selective_logprob(
    logits: Tensor, token_ids: Tensor, *, temperature: float = 1.0, backend: Backend = "auto"
) -> tuple[Tensor, Tensor]:
    """log p(token) and the entropy of each row, p = softmax(logits / temperature).

    Args:
        logits: [N, V] fp32|bf16|fp16|fp64. token_ids: [N] int32|int64 in [0, V).
        temperature: > 0.
    Returns: (logp [N], entropy [N], nats), fp32 (fp64 for fp64 input), both differentiable in logits.
    Raises: ValueError for wrong shapes, dtypes, devices or ids.
    Note: keeps the logits and 8 bytes a row for the backward pass, which makes one new [N, V] tensor.
    """
    op = "selective_logprob"
    z = check_logits(op, logits)
    ids = check_ids(op, token_ids, z.shape[0], z.shape[1], z.device)
    temperature = check_positive(op, "temperature", temperature)
    return face(op, z.device, backend).selective_logprob(z, ids, temperature)
