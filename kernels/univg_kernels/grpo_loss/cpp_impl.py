"""C++ face of `grpo_loss`: loss, metrics and gradient of a row while the row is in the cache."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _library
from .._autograd import attach_gradients, guard_overwritten, needs_grad
from .._rows import GrpoOutput, PolicyRows, math_dtype
from ..config import GrpoConfig
from ..policy_loss.cpp_impl import program_rows, program_settings
from ..selective_logprob.cpp_impl import separate_rows

_library.load()
ops = torch.ops.univg_kernels


def grpo_loss(
    logits: Tensor, token_ids: Tensor, rows: PolicyRows, config: GrpoConfig, inplace: bool
) -> GrpoOutput:
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
        if over:
            guard_overwritten("grpo_loss", logits, grad)
        loss = attach_gradients("grpo_loss", loss, [logits], [grad])
    return GrpoOutput(loss, metrics, logp.float())
