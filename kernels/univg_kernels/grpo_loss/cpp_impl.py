"""C++ face of `grpo_loss`: loss, metrics and gradient of a row while the row is in the cache; where rows depend on each
other, in a second pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import _library
from .._autograd import attach_gradients, needs_grad
from .._program import Program, row_program
from .._rows import GrpoOutput, PolicyRows, coupling, math_dtype
from .._softmax import SoftmaxSpec, separate_rows, softmax_spec
from ..config import GrpoConfig
from ..metrics import METRICS
from ..policy_loss.cpp_impl import RowInputs, policy_rows, row_inputs

_library.load()
ops = torch.ops.univg_kernels


def grpo_head_(
    z: Tensor, ids: Tensor, inputs: RowInputs, program: Program, softmax: SoftmaxSpec
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(loss, metrics, logp [N], active bool [N]) of rows that do not depend on each other; z becomes its gradient.

    z: [N, V], columns contiguous. Columns from softmax.vocab_size on are not read and become 0.
    """
    out = ops.grpo_head_(z[:, : softmax.vocab_size], ids, *inputs, *program, softmax.scale, softmax.cap)
    _clear_padding(z, softmax)
    return out


def grpo_head(
    z: Tensor, ids: Tensor, inputs: RowInputs, program: Program, softmax: SoftmaxSpec, with_grad: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The same with the gradient [N, vocab_size] as the last result (with_grad) and z as it was."""
    z = z[:, : softmax.vocab_size]
    return ops.grpo_head(z, ids, *inputs, *program, softmax.scale, softmax.cap, with_grad)


def coupled_head_(
    z: Tensor, ids: Tensor, rows: PolicyRows, config: GrpoConfig, softmax: SoftmaxSpec
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, metrics, logp [N]) of rows however coupled; z becomes its gradient."""
    x, settings = z[:, : softmax.vocab_size], (softmax.scale, softmax.cap)
    logp, entropy, lse = ops.logprob(x, ids, *settings, rows.mask)
    inputs = row_inputs(rows, config, z.shape[0], logp.dtype, entropy)
    loss, metrics, a, b = policy_rows(logp, entropy, rows.cu_seqlens, inputs, row_program(rows, config))
    ops.logprob_backward_(x, ids, lse, entropy, a, b, *settings)
    _clear_padding(z, softmax)
    return loss, metrics, logp


def _clear_padding(z: Tensor, softmax: SoftmaxSpec) -> None:
    if softmax.vocab_size is not None:
        z[:, softmax.vocab_size :].zero_()


def grpo_loss(logits: Tensor, token_ids: Tensor, rows: PolicyRows, config: GrpoConfig, inplace: bool) -> GrpoOutput:
    (wanted,) = needs_grad(logits)
    z = separate_rows(logits)
    # torch.compile has its own ways of saving memory, and no addresses.
    if inplace and wanted and not torch.compiler.is_compiling() and z.data_ptr() == logits.data_ptr():
        return _in_place(logits, token_ids.long(), rows, config)
    return _out_of_place(z, token_ids.long(), rows, config, wanted)


def _in_place(logits: Tensor, ids: Tensor, rows: PolicyRows, config: GrpoConfig) -> GrpoOutput:
    softmax = softmax_spec(config)
    with torch.no_grad():
        z = logits.data  # the overwriting is not for the ops to count: attach_gradients does
        if coupling(rows, config) == "row":
            inputs = row_inputs(rows, config, z.shape[0], math_dtype(z))
            loss, metrics, logp, _ = grpo_head_(z, ids, inputs, row_program(rows, config), softmax)
        else:
            loss, metrics, logp = coupled_head_(z, ids, rows, config, softmax)
    loss = attach_gradients("grpo_loss", loss, [logits], [logits.detach()])
    return GrpoOutput(loss, metrics, logp)


def _out_of_place(z: Tensor, ids: Tensor, rows: PolicyRows, config: GrpoConfig, wanted: bool) -> GrpoOutput:
    softmax, program, dtype = softmax_spec(config), row_program(rows, config), math_dtype(z)
    if coupling(rows, config) == "row":
        with torch.no_grad():
            inputs = row_inputs(rows, config, z.shape[0], dtype)
        loss, metrics, logp, _, _ = grpo_head(z, ids, inputs, program, softmax, wanted)
    else:
        logp, entropy, _ = ops.logprob(z[:, : softmax.vocab_size], ids, softmax.scale, softmax.cap, rows.mask)
        with torch.no_grad():
            inputs = row_inputs(rows, config, z.shape[0], dtype, entropy)
        loss, metrics, _, _ = policy_rows(logp, entropy, rows.cu_seqlens, inputs, program)
    return GrpoOutput(loss, metrics, logp.detach())


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, *others = output
    ctx.mark_non_differentiable(*others)
    ctx.set_materialize_grads(False)  # zeros for `grad` would be another [N, V]
    ctx.others = len(inputs) - 1
    ctx.save_for_backward(others[-1])


@once_differentiable
def _backward(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    (grad,) = ctx.saved_tensors
    return (None if upstream is None else _scaled(grad, upstream), *[None] * ctx.others)


def _scaled(grad: Tensor, upstream: Tensor) -> Tensor:
    """grad * upstream, in the memory of grad where nobody will want it again."""
    if type(grad) is not Tensor:  # torch.compile traces
        return grad * upstream
    if grad.is_cpu and upstream.item() == 1:
        return grad
    return grad * upstream if torch._C._autograd._get_current_graph_task_keep_graph() else grad.mul_(upstream)


torch.library.register_autograd("univg_kernels::grpo_head", _backward, setup_context=_setup_context)


@torch.library.register_fake("univg_kernels::grpo_head")
def _(logits: Tensor, *args: Any) -> tuple[Tensor, ...]:
    with_grad = args[-1]
    grad = logits.new_empty(logits.shape) if with_grad else logits.new_empty(0, dtype=torch.float32)
    return (*_fake_rows(logits), grad)


@torch.library.register_fake("univg_kernels::grpo_head_")
def _(logits: Tensor, *args: Any) -> tuple[Tensor, ...]:
    return _fake_rows(logits)


def _fake_rows(logits: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n, dtype = logits.shape[0], math_dtype(logits)
    loss, metrics = logits.new_empty((), dtype=dtype), logits.new_empty(len(METRICS), dtype=torch.float32)
    return loss, metrics, logits.new_empty(n, dtype=dtype), logits.new_empty(n, dtype=torch.bool)
