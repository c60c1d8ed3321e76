"""Triton face of `policy_loss`, and the row arguments that the policy losses share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._autograd import attach_gradients, needs_grad
from .._rows import GrpoOutput, PolicyRows
from .._triton.launch import check_dtype, launch, vector
from .._triton.partials import empty_partials, reduce_partials, store_partials
from .._triton.responses import response_terms
from .._triton.row_program import policy_row
from .._triton.scale import scale_on_device
from ..config import GrpoConfig
from ..group_advantage.triton_impl import group_advantage

BLOCK = 512
WARPS = 8


class RowArguments(NamedTuple):
    """What the rows are worth, in the shape that a registered op can take; `kernel_arguments` names the parts."""

    tensors: list[Tensor | None]
    floats: list[float]
    scale_rewards: str
    difficulty: str
    loss_type: str


TENSORS = (
    "cu_seqlens", "rewards", "accuracy", "cu_groups", "advantages", "phi", "mask", "old_logp", "ref_logp",
    "num_responses_tensor",
)  # fmt: skip
FLOATS = ("num_responses", "advantage_eps", "difficulty_power", "epsilon_low", "epsilon_high", "delta", "beta")


def row_arguments(rows: PolicyRows, config: GrpoConfig) -> RowArguments:
    advantages, phi, rewards = vector(rows.advantages), vector(rows.phi), vector(rows.rewards)
    accuracy, cu_groups = vector(rows.accuracy), rows.cu_groups
    if rewards is not None and (config.scale_rewards == "batch" or config.normalize_difficulty):
        # Statistics over all groups: not a matter of one row. The factors then come from their own launch.
        assert cu_groups is not None  # check_rows
        stats = group_advantage(rewards, cu_groups, accuracy, config)
        advantages, phi, rewards, accuracy, cu_groups = stats.advantages, stats.phi, None, None, None
    count = rows.num_responses
    old, ref = vector(rows.old_logp), vector(rows.ref_logp)
    maybe = (rows.cu_seqlens, rewards, accuracy, cu_groups, advantages, phi, rows.mask, old, ref)
    tensors = [None if t is None else t.contiguous() for t in maybe]
    tensors.append(count if isinstance(count, Tensor) else None)
    number = 1.0 if isinstance(count, Tensor) else float(count)
    delta = math.inf if config.delta is None else config.delta
    scalars = (
        config.advantage_eps,
        config.difficulty_power,
        config.epsilon_low,
        config.epsilon_high,
        delta,
        config.beta,
    )
    floats = [number, *(float(x) for x in scalars)]
    return RowArguments(tensors, floats, config.scale_rewards, config.difficulty, config.loss_type)


def kernel_arguments(
    tensors: Sequence[Tensor | None], floats: Sequence[float], scale_rewards: str, difficulty: str, loss_type: str
) -> dict[str, Any]:
    """Keyword arguments of a policy kernel, from the parts of RowArguments."""
    named: dict[str, Any] = dict(zip(TENSORS, tensors, strict=True)) | dict(zip(FLOATS, floats, strict=True))
    cu_groups = named["cu_groups"]
    named["num_groups"] = 0 if cu_groups is None else cu_groups.numel() - 1
    return named | {"SCALE": scale_rewards, "DIFFICULTY": difficulty, "LOSS_TYPE": loss_type}


@triton.jit(do_not_specialize=["N", "num_groups"])
def policy_rows_kernel(logp, entropy, gradient, logp_out, partials, N,
                       cu_seqlens, rewards, accuracy, cu_groups, num_groups, advantages, phi, mask, old_logp, ref_logp,
                       num_responses, num_responses_tensor, advantage_eps, difficulty_power,
                       epsilon_low, epsilon_high, delta, beta,
                       SCALE: tl.constexpr, DIFFICULTY: tl.constexpr, LOSS_TYPE: tl.constexpr,
                       BLOCK: tl.constexpr):  # fmt: skip
    """One program per response: its rows [cu_seqlens[b], cu_seqlens[b+1])."""
    response = tl.program_id(0)
    advantage, phi_b, weight = response_terms(
        response, cu_seqlens, rewards, accuracy, cu_groups, num_groups, advantages, phi, mask,
        num_responses, num_responses_tensor, advantage_eps, difficulty_power, SCALE, DIFFICULTY,
    )  # fmt: skip
    end = tl.load(cu_seqlens + response + 1)
    for start in range(tl.load(cu_seqlens + response), end, BLOCK):
        n = start + tl.arange(0, BLOCK)
        inside = n < end
        keep = inside
        if mask is not None:
            keep = inside & (tl.load(mask + n, mask=inside, other=0) != 0)
        # Rows that do not count hold anything, even NaN: they are not read.
        lp = tl.load(logp + n, mask=keep, other=0.0).to(tl.float32)
        difference = tl.zeros_like(lp)
        if old_logp is not None:
            difference = lp - tl.load(old_logp + n, mask=keep, other=0.0)
        ref = lp
        if ref_logp is not None:
            ref = tl.load(ref_logp + n, mask=keep, other=0.0)
        h = tl.zeros_like(lp)
        if entropy is not None:
            h = tl.load(entropy + n, mask=keep, other=0.0)
        loss, a, kl, ratio, low, high = policy_row(
            lp, difference, ref, tl.zeros_like(lp) + advantage, phi_b, weight, epsilon_low, epsilon_high, delta, beta,
            ref_logp is not None, LOSS_TYPE,
        )  # fmt: skip
        zero = tl.zeros_like(lp)
        tl.store(gradient + n, tl.where(keep, a, zero).to(gradient.dtype.element_ty), mask=inside)
        tl.store(logp_out + n, lp, mask=inside)
        store_partials(
            partials, N, n, tl.where(keep, loss, zero), keep.to(tl.float32), tl.where(keep, kl, zero), h,
            tl.where(keep, low, zero), tl.where(keep, high, zero), tl.where(keep, ratio, zero), tl.abs(difference),
            inside,
        )  # fmt: skip


@torch.library.custom_op("univg_kernels::triton_policy_rows", mutates_args=("gradient", "out", "partials"))
def triton_policy_rows(
    logp: Tensor, entropy: Tensor | None, gradient: Tensor, out: Tensor, partials: Tensor,
    tensors: Sequence[Tensor | None], floats: Sequence[float], scale_rewards: str, difficulty: str, loss_type: str,
) -> None:  # fmt: skip
    arguments = kernel_arguments(tensors, floats, scale_rewards, difficulty, loss_type)
    launch(
        policy_rows_kernel, arguments["cu_seqlens"].numel() - 1, logp, logp, entropy, gradient, out, partials,
        logp.numel(), **arguments, BLOCK=BLOCK, num_warps=WARPS,
    )  # fmt: skip


@torch.no_grad()
def _forward(
    logp: Tensor, entropy: Tensor | None, rows: PolicyRows, config: GrpoConfig
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    check_dtype("policy_loss", logp)
    lp = logp.detach().contiguous()
    gradient, out = torch.empty_like(lp), torch.empty_like(lp, dtype=torch.float32)
    partials = empty_partials(lp.numel(), lp)
    triton_policy_rows(lp, vector(entropy), gradient, out, partials, *row_arguments(rows, config))
    loss, metrics = reduce_partials(partials)
    return loss, metrics, gradient, out


def policy_loss(logp: Tensor, entropy: Tensor | None, rows: PolicyRows, config: GrpoConfig) -> GrpoOutput:
    loss, metrics, gradient, out = _forward(logp, entropy, rows, config)
    if any(needs_grad(logp)):
        loss = attach_gradients("policy_loss", loss, [logp], [gradient], scale_on_device)
    return GrpoOutput(loss, metrics, out)
