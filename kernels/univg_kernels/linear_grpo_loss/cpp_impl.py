"""C++ face of `linear_grpo_loss`: torch's products around the C++ row head."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _library
from .._autograd import attach_gradients, needs_grad
from .._linear_head import run_linear_head
from .._rows import GrpoOutput, PolicyRows, math_dtype
from ..config import GrpoConfig
from ..metrics import combine_metrics
from ..policy_loss.cpp_impl import program_rows, program_settings

_library.load()
ops = torch.ops.univg_kernels


def linear_grpo_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    token_ids: Tensor,
    rows: PolicyRows,
    config: GrpoConfig,
) -> GrpoOutput:
    inputs = (hidden, weight, bias)
    needs = needs_grad(*inputs)
    with torch.no_grad():
        n, dtype = hidden.shape[0], math_dtype(hidden)
        terms, old, ref = program_rows(rows, config, n, dtype)
        ids, settings = token_ids.long(), program_settings(config)
        loss = torch.zeros((), dtype=dtype)
        logp = torch.zeros(n, dtype=dtype)
        metrics: list[Tensor] = []

        def score(z: Tensor, start: int, stop: int) -> Tensor:
            part = slice(start, stop)
            row_args = [None if t is None else t[part] for t in (*terms, old, ref)]
            args = (z, ids[part], *row_args, *settings, config.temperature)
            out = ops.grpo_head_(*args) if any(needs) else ops.grpo_head(*args, False)
            loss.add_(out[0])
            metrics.append(out[1])
            logp[part] = out[2]
            return out[3]

        grads = run_linear_head(hidden, weight, bias, score, needs)
        if not metrics:  # N = 0
            score(hidden.new_empty(0, weight.shape[0]), 0, 0)
    if any(needs):
        loss = attach_gradients("linear_grpo_loss", loss, inputs, grads)
    return GrpoOutput(loss, combine_metrics(*metrics), logp.float())
