"""Triton face of `linear_grpo_loss`: torch's products around the row kernel of `grpo_loss`."""

from __future__ import annotations

import torch
from torch import Tensor

from .._autograd import attach_gradients, needs_grad
from .._linear_head import run_linear_head
from .._rows import GrpoOutput, PolicyRows
from .._triton.launch import check_dtype
from .._triton.partials import empty_partials, reduce_partials
from .._triton.scale import scale_on_device
from ..config import GrpoConfig
from ..grpo_loss.triton_impl import triton_grpo_rows, triton_grpo_rows_
from ..policy_loss.triton_impl import row_arguments


def linear_grpo_loss(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, token_ids: Tensor, rows: PolicyRows, config: GrpoConfig
) -> GrpoOutput:
    check_dtype("linear_grpo_loss", hidden)
    inputs = (hidden, weight, bias)
    needs = needs_grad(*inputs)
    with torch.no_grad():
        settings, ids = (float(config.temperature), *row_arguments(rows, config)), token_ids.contiguous()
        logp = hidden.new_empty(hidden.shape[0], dtype=torch.float32)
        partials = empty_partials(hidden.shape[0], hidden)

        def score(z: Tensor, start: int, stop: int) -> None:
            # None: all rows go on to the backward products. Leaving the zero rows out would mean to wait for the
            # device to know which they are.
            if any(needs):
                triton_grpo_rows_(z, ids, logp, partials, start, *settings)
            else:
                triton_grpo_rows(z, None, ids, logp, partials, start, *settings)

        grads = run_linear_head(hidden, weight, bias, score, needs)
        loss, metrics = reduce_partials(partials)
    if any(needs):
        loss = attach_gradients("linear_grpo_loss", loss, inputs, grads, scale_on_device)
    return GrpoOutput(loss, metrics, logp)
