"""The door of `grpo_loss`."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from .._checks import check_ids, check_logits
from .._dispatch import Backend, face
from .._row_checks import check_rows
from .._rows import GrpoOutput, RowArguments
from .._softmax import check_vocab
from ..config import GrpoConfig, check_config, check_flag


def grpo_loss(
    logits: Tensor,
    token_ids: Tensor,
    cu_seqlens: Tensor,
    *,
    config: GrpoConfig | None = None,
    inplace: bool = True,
    backend: Backend = "auto",
    **rows: Unpack[RowArguments],
) -> GrpoOutput:
    """A policy loss of the GRPO family, its metrics and its gradient in one pass over the logits.

    L = sum_t w_t·(phi_i·gate_t·policy_t + beta·kl_t) - entropy bonus; policy_t and kl_t as config.loss_type and
    config.kl_estimator have it (docs/losses.md), w_t from mask, aggregation and denominator. phi weighs the policy
    term only, also where it is negative; gate_t holds the sampler's correction and the masks.

    Args:
        logits: [N, V] fp32|bf16|fp16|fp64; row t scores token_ids[t]. token_ids: [N] int32|int64 in [0, V).
        cu_seqlens: [B+1] int32|int64, offsets of the responses in the rows; responses may be empty. May lie on the
            CPU whatever the logits are on; on their device, where a CUDA graph is to capture the call.
        rows: what they are worth, see `RowArguments`: rewards and cu_groups, or advantages; old_logp, ref_logp, mask, …
        inplace: allow the gradient to be written over the logits, which are then not to be used again; something
            else that differentiates through them, or a second backward pass, raises RuntimeError. Not possible for
            logits that are a leaf which requires a gradient.
    Returns: GrpoOutput(loss scalar, metrics [len(METRICS)], logp [N]), fp32; the loss is fp64 for fp64 logits.
    Raises: ValueError for wrong shapes, dtypes, devices, ids or offsets (on CUDA ids and offsets are not looked at:
        wrong ones give NaN, see `RowArguments`).
    Note: extra memory is O(N) in place, one [N, V] tensor otherwise. Deterministic. Losses whose rows depend on each
        other (sequence level, gmpo, vespo, masks over responses or the batch) read the logits a second time. The
        gradient is made for an upstream gradient of 1 and multiplied by the real one in the backward pass: in half
        precision that rounds a second time, unless it is a power of two, and with fp16 and a gradient scaler small
        gradients would be 0 before the scaler sees them: give denominator / scale instead of scaling the loss.
    Source: DeepSeekMath (arXiv 2402.03300), UniVG-R1's phi; of each loss type: docs/losses.md.
    """
    op, config = "grpo_loss", check_config("grpo_loss", config)
    z = check_logits(op, logits)
    ids = check_ids(op, token_ids, z.shape[0], check_vocab(op, config.vocab_size, z.shape[1]), z.device)
    checked = check_rows(op, z.shape[0], z.device, config, cu_seqlens, dict(rows))
    check_flag(op, "inplace", inplace)
    if inplace and torch.is_grad_enabled() and _is_parameter(z):
        raise ValueError(
            f"{op}: logits must not be a leaf that requires a gradient, or a view of one, when inplace=True, got "
            "such a leaf; its gradient would be written over it: pass inplace=False"
        )
    return face(op, z.device, backend).grpo_loss(z, ids, checked, config, inplace)


def _is_parameter(logits: Tensor) -> bool:
    """Whether to write to it is to write to a leaf that requires a gradient."""
    base = None if torch.compiler.is_compiling() or not logits._is_view() else logits._base
    return any(t.is_leaf and t.requires_grad for t in (logits, base) if t is not None)
