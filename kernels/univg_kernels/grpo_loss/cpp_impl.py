"""C++ face of `grpo_loss`: loss, metrics and gradient of a row while the row is in the cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _library
from .._autograd import attach_gradients, needs_grad
from .._rows import GrpoOutput, PolicyRows, math_dtype
from ..config import GrpoConfig
from ..metrics import METRICS
from ..policy_loss.cpp_impl import program_rows, program_settings
from ..selective_logprob.cpp_impl import separate_rows

_library.load()
ops = torch.ops.univg_kernels


def grpo_loss(logits: Tensor, token_ids: Tensor, rows: PolicyRows, config: GrpoConfig, inplace: bool) -> GrpoOutput:
    (wanted,) = needs_grad(logits)
    with torch.no_grad():
        z = separate_rows(logits.detach())
        over = inplace and wanted and z.data_ptr() == logits.data_ptr()
        terms, old, ref = program_rows(rows, config, z.shape[0], math_dtype(z))
        args = (token_ids.long(), *terms, old, ref, *program_settings(config), config.temperature)
        if over:
            loss, metrics, logp, _ = ops.grpo_head_(z, *args)
            grad = z
        else:
            loss, metrics, logp, _, grad = ops.grpo_head(z, *args, wanted)
    if wanted:
        loss = attach_gradients("grpo_loss", loss, [logits], [grad])
    return GrpoOutput(loss, metrics, logp.float())


@torch.library.register_fake("univg_kernels::grpo_head")
def _(logits: Tensor, *args: Any) -> tuple[Tensor, ...]:
    return (
        *_fake_rows(logits),
        logits.new_empty(logits.shape) if args[-1] else logits.new_empty(0, dtype=torch.float32),
    )


@torch.library.register_fake("univg_kernels::grpo_head_")
def _(logits: Tensor, *args: Any) -> tuple[Tensor, ...]:
    return _fake_rows(logits)


def _fake_rows(logits: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n, dtype = logits.shape[0], math_dtype(logits)
    loss, metrics = logits.new_empty((), dtype=dtype), logits.new_empty(len(METRICS), dtype=torch.float32)
    return loss, metrics, logits.new_empty(n, dtype=dtype), logits.new_empty(n, dtype=torch.bool)
