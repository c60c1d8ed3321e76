"""C++ face of `linear_ce`: torch's products around the C++ row head."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _library
from .._autograd import attach_gradients, needs_grad
from .._linear_head import run_linear_head
from .._rows import math_dtype

_library.load()
ops = torch.ops.univg_kernels


def linear_ce(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, token_ids: Tensor, row_weight: Tensor
) -> tuple[Tensor, Tensor]:
    inputs = (hidden, weight, bias)
    needs = needs_grad(*inputs)
    with torch.no_grad():
        dtype = math_dtype(hidden)
        ids, rw = token_ids.long(), row_weight.to(dtype).contiguous()
        loss = torch.zeros((), dtype=dtype)
        logp = torch.zeros(hidden.shape[0], dtype=dtype)

        def score(z: Tensor, start: int, stop: int) -> Tensor | None:
            part = slice(start, stop)
            if not any(needs):
                logp[part] = ops.logprob(z, ids[part], 1.0)[0]
                return None
            chunk_loss, logp[part], active = ops.ce_head_(z, ids[part], rw[part])
            loss.add_(chunk_loss)
            return active

        grads = run_linear_head(hidden, weight, bias, score, needs)
        if not any(needs):
            loss = -torch.where(rw != 0, rw * logp, 0.0).sum()
    if any(needs):
        loss = attach_gradients("linear_ce", loss, inputs, grads)
    return loss, logp


@torch.library.register_fake("univg_kernels::ce_head_")
def _(logits: Tensor, token_ids: Tensor, row_weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    logp = torch.empty_like(row_weight)
    return row_weight.new_empty(()), logp, torch.empty_like(logp, dtype=torch.bool)
