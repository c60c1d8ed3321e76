"""Triton face of `grpo_loss`: one program takes a row from its logits to its gradient, and the row head of the linear
loss is the same kernel on a chunk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._autograd import attach_gradients, needs_grad
from .._rows import GrpoOutput, PolicyRows
from .._triton.launch import check_dtype, launch, row_launch
from .._triton.partials import empty_partials, reduce_partials, store_partials
from .._triton.responses import find_segment, response_terms
from .._triton.row_program import policy_row
from .._triton.scale import scale_on_device
from .._triton.softmax import LOG2E, fill_zeros, load_tile, sweep_backward, sweep_forward
from ..config import GrpoConfig
from ..policy_loss.triton_impl import kernel_arguments, row_arguments
from ..selective_logprob.triton_impl import log_probability, separate_rows, target_logit


@triton.jit(do_not_specialize=["N", "row_start", "num_responses_given", "num_groups"])
def grpo_rows_kernel(logits, stride, gradient, gradient_stride, token_ids, logp, partials, N, row_start, V, temperature,
                     num_responses_given, cu_seqlens, rewards, accuracy, cu_groups, num_groups, advantages, phi, mask,
                     old_logp, ref_logp, num_responses, num_responses_tensor, advantage_eps, difficulty_power,
                     epsilon_low, epsilon_high, delta, beta,
                     SCALE: tl.constexpr, DIFFICULTY: tl.constexpr, LOSS_TYPE: tl.constexpr,
                     LANES: tl.constexpr, VEC: tl.constexpr):  # fmt: skip
    """Row row_start + program of N; the logits begin at row_start. `gradient` may be `logits`, or None."""
    program = tl.program_id(0)
    n = row_start + program
    row = logits + program.to(tl.int64) * stride
    keep = 1
    if mask is not None:
        keep = tl.load(mask + n).to(tl.int32)
    if keep != 0:
        # Both loads of logits go out before the factors are looked up: their latencies overlap.
        first = load_tile(row, 0, V, LANES, VEC)
        target = tl.load(token_ids + n)
        z = target_logit(row, target, V)
        response = find_segment(cu_seqlens, num_responses_given, n)
        advantage, phi_b, weight = response_terms(
            response, cu_seqlens, rewards, accuracy, cu_groups, num_groups, advantages, phi, mask,
            num_responses, num_responses_tensor, advantage_eps, difficulty_power, SCALE, DIFFICULTY,
        )  # fmt: skip
        scale = LOG2E / temperature
        top, log2_mass, entropy = sweep_forward(row, first, V, scale, LANES, VEC)
        lp = log_probability(z, scale, top, log2_mass)
        difference = tl.zeros_like(lp)
        if old_logp is not None:
            difference = lp - tl.load(old_logp + n)
        ref = lp
        if ref_logp is not None:
            ref = tl.load(ref_logp + n)
        loss, a, kl, ratio, low, high = policy_row(
            lp, difference, ref, advantage, phi_b, weight, epsilon_low, epsilon_high, delta, beta,
            ref_logp is not None, LOSS_TYPE,
        )  # fmt: skip
        tl.store(logp + n, lp)
        store_partials(partials, N, n, loss, 1.0, kl, entropy, low, high, ratio, tl.abs(difference), None)
        if gradient is not None:
            out = gradient + program.to(tl.int64) * gradient_stride
            if a == 0.0:
                fill_zeros(out, V, LANES, VEC)
            else:
                sweep_backward(
                    row, out, target, V, scale, top + log2_mass, a, 0.0, entropy, temperature, False, LANES, VEC
                )
    else:
        tl.store(logp + n, 0.0)
        store_partials(partials, N, n, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, None)
        if gradient is not None:
            fill_zeros(gradient + program.to(tl.int64) * gradient_stride, V, LANES, VEC)


def _launch(
    logits: Tensor, gradient: Tensor | None, token_ids: Tensor, logp: Tensor, partials: Tensor, row_start: int,
    temperature: float, arguments: dict[str, Any],
) -> None:  # fmt: skip
    count, v = logits.shape
    launch(
        grpo_rows_kernel, count, logits, logits, logits.stride(0),
        gradient, 0 if gradient is None else gradient.stride(0), token_ids, logp, partials, logp.numel(), row_start,
        v, temperature, arguments["cu_seqlens"].numel() - 1,
        **arguments, **row_launch(v, logits.element_size())._asdict(),
    )  # fmt: skip


@torch.library.custom_op("univg_kernels::triton_grpo_rows", mutates_args=("gradient", "logp", "partials"))
def triton_grpo_rows(
    logits: Tensor, gradient: Tensor | None, token_ids: Tensor, logp: Tensor, partials: Tensor, row_start: int,
    temperature: float, tensors: Sequence[Tensor | None], floats: Sequence[float], scale_rewards: str,
    difficulty: str, loss_type: str,
) -> None:  # fmt: skip
    """Score the rows [row_start, row_start + len(logits)) into logp [N], partials [_, N] and gradient."""
    arguments = kernel_arguments(tensors, floats, scale_rewards, difficulty, loss_type)
    _launch(logits, gradient, token_ids, logp, partials, row_start, temperature, arguments)


@torch.library.custom_op("univg_kernels::triton_grpo_rows_", mutates_args=("logits", "logp", "partials"))
def triton_grpo_rows_(
    logits: Tensor, token_ids: Tensor, logp: Tensor, partials: Tensor, row_start: int,
    temperature: float, tensors: Sequence[Tensor | None], floats: Sequence[float], scale_rewards: str,
    difficulty: str, loss_type: str,
) -> None:  # fmt: skip
    """The same; the gradient takes the place of the logits."""
    arguments = kernel_arguments(tensors, floats, scale_rewards, difficulty, loss_type)
    _launch(logits, logits, token_ids, logp, partials, row_start, temperature, arguments)


def _tell_autograd(logits: Tensor) -> Tensor:
    """Count the overwriting of `logits`, so that what had saved them before raises; give back what they hold now.

    Not for a view, such as [B, L, V] flattened to rows: autograd would then replace the view's backward by a general
    one that makes and fills another [B, L, V], and torch's register_hook crashes on such a view. Its other uses that
    send a gradient to the view itself are still caught by attach_gradients.
    """
    gradient = logits.detach()
    if not logits._is_view():
        torch.autograd.graph.increment_version(gradient)
    return gradient


def grpo_loss(logits: Tensor, token_ids: Tensor, rows: PolicyRows, config: GrpoConfig, inplace: bool) -> GrpoOutput:
    check_dtype("grpo_loss", logits)
    (wanted,) = needs_grad(logits)
    with torch.no_grad():
        z, ids = separate_rows(logits.detach()), token_ids.contiguous()
        logp = z.new_empty(z.shape[0], dtype=torch.float32)
        partials = empty_partials(z.shape[0], z)
        settings = (0, float(config.temperature), *row_arguments(rows, config))
        # torch.compile has its own ways of saving memory, and no addresses.
        gradient: Tensor | None
        if inplace and wanted and not torch.compiler.is_compiling() and z.data_ptr() == logits.data_ptr():
            # .data: the op must not count the overwriting, that is done by _tell_autograd.
            triton_grpo_rows_(logits.data, ids, logp, partials, *settings)
            gradient = _tell_autograd(logits)
        else:
            gradient = torch.empty_like(z, memory_format=torch.contiguous_format) if wanted else None
            triton_grpo_rows(z, gradient, ids, logp, partials, *settings)
        loss, metrics = reduce_partials(partials)
    if wanted:
        loss = attach_gradients("grpo_loss", loss, [logits], [gradient], scale_on_device)
    return GrpoOutput(loss, metrics, logp)
