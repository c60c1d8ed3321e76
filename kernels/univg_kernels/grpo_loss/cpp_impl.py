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
    terms, old, ref = program_rows(rows, config, logits.shape[0], math_dtype(logits))
    args = (token_ids.long(), *terms, old, ref, *program_settings(config), config.temperature)
    z = separate_rows(logits)
    # torch.compile has its own ways of saving memory, and no addresses.
    if inplace and wanted and not torch.compiler.is_compiling() and z.data_ptr() == logits.data_ptr():
        with torch.no_grad():
            grad = z.detach()
            loss, metrics, logp, _ = ops.grpo_head_(grad, *args)
        loss = attach_gradients("grpo_loss", loss, [logits], [grad])
    else:
        loss, metrics, logp, _, _ = ops.grpo_head(z, *args, wanted)
    return GrpoOutput(loss, metrics, logp.float())


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, *others = output
    ctx.mark_non_differentiable(*others)
    ctx.save_for_backward(others[-1])


def _backward(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    (grad,) = ctx.saved_tensors
    return (grad * upstream, *[None] * 13)


torch.library.register_autograd("univg_kernels::grpo_head", _backward, setup_context=_setup_context)


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
