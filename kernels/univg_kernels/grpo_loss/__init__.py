"""The door of `grpo_loss`."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import check_ids, check_logits
from .._dispatch import Backend, face
from .._rows import GrpoOutput, check_rows
from ..config import GrpoConfig


def grpo_loss(
    logits: Tensor,
    token_ids: Tensor,
    cu_seqlens: Tensor,
    *,
    rewards: Tensor | None = None,
    accuracy: Tensor | None = None,
    cu_groups: Tensor | None = None,
    advantages: Tensor | None = None,
    phi: Tensor | None = None,
    old_logp: Tensor | None = None,
    ref_logp: Tensor | None = None,
    mask: Tensor | None = None,
    num_responses: float | Tensor | None = None,
    config: GrpoConfig | None = None,
    inplace: bool = True,
    backend: Backend = "auto",
) -> GrpoOutput:
    """The GRPO loss, its metrics and its gradient in one pass over the logits.

    L = 1/num_responses · sum_i 1/max(|o_i|, 1) · sum_t mask·(phi_i·policy_t + beta·k3_t),
    policy_t = -min(ρ·A_i, clip(ρ)·A_i), ρ = exp(logp - old_logp), k3 = exp(d) - d - 1 with d = ref_logp - logp.
    phi weighs the policy term only, also where it is negative.

    Args:
        logits: [N, V] fp32|bf16|fp16|fp64; row t scores token_ids[t]. token_ids: [N] int32|int64 in [0, V).
        cu_seqlens: [B+1] int32|int64, offsets of the responses in the rows; responses may be empty.
        rewards [B], cu_groups [K+1], accuracy [B]: advantages and phi are made here (see `group_advantage`); or
        advantages [B], phi [B]: given. phi is 1 where neither accuracy nor phi is given.
        old_logp: [N], of the policy that sampled, at this temperature; None means the present one (ρ = 1).
        ref_logp: [N]; None, or beta = 0, means no KL term.
        mask: [N] bool, rows that count, also in |o_i|; None means all. Other rows may hold any logits.
        num_responses: number or scalar tensor; default B. With the number of the whole global batch, the losses,
            gradients and metrics of micro-batches and ranks add up to those of the batch.
        inplace: allow the gradient to be written over the logits, which are then not to be used again; something
            else that differentiates through them, or a second backward pass, raises RuntimeError. Not possible for
            logits that are a leaf which requires a gradient.
    Returns: GrpoOutput(loss scalar, metrics [len(METRICS)], logp [N]), fp32; the loss is fp64 for fp64 logits.
    Raises: ValueError for wrong shapes, dtypes, devices, ids or offsets.
    Note: extra memory is O(N) in place, one [N, V] tensor otherwise. Deterministic. The gradient is made for an
        upstream gradient of 1 and multiplied by the real one in the backward pass: in half precision that rounds a
        second time, unless it is a power of two.
    Source: DeepSeekMath (arXiv 2402.03300), TRL's `grpo` normalisation, UniVG-R1's phi.
    """
    op, config = "grpo_loss", config or GrpoConfig()
    z = check_logits(op, logits)
    ids = check_ids(op, token_ids, z.shape[0], z.shape[1], z.device)
    rows = check_rows(
        op, z.shape[0], z.device, config, cu_seqlens, rewards, accuracy, cu_groups, advantages, phi,
        old_logp, ref_logp, mask, num_responses,
    )  # fmt: skip
    if inplace and z.is_leaf and z.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            f"{op}: logits must not be a leaf that requires a gradient when inplace=True, got a leaf; "
            "its gradient would be written over it: pass inplace=False"
        )
    return face(op, z.device, backend).grpo_loss(z, ids, rows, config, inplace)
