"""The door of `linear_logprob`."""

from __future__ import annotations

from torch import Tensor

from .._autocast import no_autocast
from .._checks import check_ids, check_linear
from .._dispatch import Backend, face
from .._softmax import check_softmax, check_vocab


def linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    token_ids: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    vocab_size: int | None = None,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """`selective_logprob` of hidden @ weight.T + bias, never holding the logits [N, V].

    Args:
        hidden: [N, H] fp32|bf16|fp16|fp64. weight: [V, H], bias: [V], of hidden's dtype; inside
            torch.autocast of any, cast as by F.linear.
        token_ids: [N] int32|int64 in [0, V).
        temperature, logit_scale, softcap, vocab_size: as in `selective_logprob`.
    Returns: (logp [N], entropy [N], nats), fp32 (fp64 for fp64 input), differentiable in hidden, weight and bias.
    Raises: ValueError for wrong shapes, dtypes, devices or ids (on a GPU ids are not looked at, which would wait for
        it; one out of range makes its row NaN).
    Note: the backward pass computes the logits again, chunk by chunk (four products in all); rows whose upstream
        gradients are both 0 are left out of its last two, and nothing is made for an input that needs no gradient.
    """
    op = "linear_logprob"
    h, w, b = check_linear(op, hidden, weight, bias)
    ids = check_ids(op, token_ids, h.shape[0], check_vocab(op, vocab_size, w.shape[0]), h.device)
    softmax = check_softmax(op, temperature, logit_scale, softcap, vocab_size)
    with no_autocast(h):
        return face(op, h.device, backend).linear_logprob(h, w, b, ids, softmax)
