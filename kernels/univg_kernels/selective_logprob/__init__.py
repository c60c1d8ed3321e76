"""The door of `selective_logprob`."""

from __future__ import annotations

from torch import Tensor

from .._checks import check_ids, check_logits
from .._dispatch import Backend, face
from .._softmax import check_softmax, check_vocab


def selective_logprob(
    logits: Tensor,
    token_ids: Tensor,
    *,
    temperature: float = 1.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    vocab_size: int | None = None,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """log p(token) and the entropy of each row, p = softmax of the logits.

    Args:
        logits: [N, V] fp32|bf16|fp16|fp64. token_ids: [N] int32|int64 in [0, V).
        temperature, logit_scale, softcap: p = softmax(softcap·tanh(logits·logit_scale/softcap)/temperature), all > 0;
            without the tanh if softcap is None.
        vocab_size: columns from there on are padding: no probability, no gradient. None: all exist.
    Returns: (logp [N], entropy [N], nats), fp32 (fp64 for fp64 input), both differentiable in logits.
    Raises: ValueError for wrong shapes, dtypes, devices or ids (on a GPU ids are not looked at, which would wait for
        it; one out of range makes its row NaN).
    Note: a logit of -inf is a banned token, of probability 0 and without a gradient; NaN, +inf, or nothing but -inf
        makes its own row NaN. There may be no rows. Keeps the logits and 8 bytes a row for the backward pass, which
        makes one new [N, V] tensor.
    """
    op = "selective_logprob"
    z = check_logits(op, logits)
    ids = check_ids(op, token_ids, z.shape[0], check_vocab(op, vocab_size, z.shape[1]), z.device)
    softmax = check_softmax(op, temperature, logit_scale, softcap, vocab_size)
    return face(op, z.device, backend).selective_logprob(z, ids, softmax)
