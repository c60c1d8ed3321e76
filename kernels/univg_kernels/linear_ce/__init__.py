"""The door of `linear_ce`."""

from __future__ import annotations

import torch
from torch import Tensor

from .._autocast import no_autocast
from .._checks import check_ids, check_linear, check_tensor, check_weight_grad, is_number
from .._dispatch import Backend, face
from .._rows import math_dtype
from .._softmax import check_softmax, check_vocab


def linear_ce(
    hidden: Tensor,
    weight: Tensor,
    token_ids: Tensor,
    *,
    row_weight: Tensor | float,
    bias: Tensor | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    vocab_size: int | None = None,
    weight_grad: Tensor | None = None,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Cross entropy of hidden @ weight.T + bias, loss = sum_t row_weight_t · (-log p(token_t)).

    The gradients are made in the forward pass, chunk by chunk: three products, never the logits [N, V]; rows of
    weight 0 are left out of the two backward products. Where one number is the weight of all rows, none are looked for,
    sorted or moved, and on CUDA no chunk's part of the weight's gradient is rounded to half precision (but in a
    `weight_grad` of it, and under torch.compile). The first backward pass hands the gradients over; a second one
    through the same result raises RuntimeError.

    Args:
        hidden: [N, H] fp32|bf16|fp16|fp64. weight: [V, H], bias: [V], of hidden's dtype; inside
            torch.autocast of any, cast as by F.linear.
        token_ids: [N] int32|int64 in [0, V).
        row_weight: [N] fp32 (or fp64), or one finite number for all rows; holds the normaliser, 1 / number of targets
            for a mean. Not differentiated.
        logit_scale, softcap, vocab_size: as in `selective_logprob`.
        weight_grad: as in `linear_grpo_loss`.
    Returns: (loss scalar, logp [N] detached), fp32 (fp64 for fp64 input).
    Raises: ValueError for wrong shapes, dtypes, devices or ids (on a GPU ids are not looked at, which would wait for
        it; one out of range makes its row NaN).
    """
    op = "linear_ce"
    h, w, b = check_linear(op, hidden, weight, bias)
    ids = check_ids(op, token_ids, h.shape[0], check_vocab(op, vocab_size, w.shape[0]), h.device)
    rw = _check_row_weight(op, row_weight, h)
    softmax = check_softmax(op, 1.0, logit_scale, softcap, vocab_size)
    check_weight_grad(op, weight_grad, w)
    with no_autocast(h):
        return face(op, h.device, backend).linear_ce(h, w, b, ids, rw, softmax, weight_grad)


def _check_row_weight(op: str, row_weight: Tensor | float, hidden: Tensor) -> Tensor | float:
    if isinstance(row_weight, Tensor) or not is_number(row_weight):
        kinds = (torch.float32, torch.float64)
        shape, remedy = (hidden.shape[0],), "or give one Python number for all rows"
        return check_tensor(op, "row_weight", row_weight, shape, kinds, hidden.device, remedy).detach()
    # Whoever looks at a number makes torch.compile compile for each value of it.
    if not (torch.compiler.is_compiling() or abs(row_weight) <= torch.finfo(math_dtype(hidden)).max):
        raise ValueError(f"{op}: row_weight must be a finite number, or a tensor [N], got {row_weight!r}")
    return row_weight
