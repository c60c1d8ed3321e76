"""What the policy losses know about their rows, and what they give back.

N rows, B responses, K groups.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, TypedDict

import torch
from torch import Tensor

from .config import GrpoConfig


class GrpoOutput(NamedTuple):
    """loss: scalar fp32 (fp64 for fp64 input), differentiable · metrics: fp32 [len(METRICS)], see METRICS ·
    logp: fp32 [N], detached, 0 where the mask is False."""

    loss: Tensor
    metrics: Tensor
    logp: Tensor


class GroupAdvantage(NamedTuple):
    """advantages [B], phi [B] of the responses; mean [K], std [K] (ddof 1) of the rewards and accuracy_mean [K]."""

    advantages: Tensor
    phi: Tensor
    mean: Tensor
    std: Tensor
    accuracy_mean: Tensor


class RowArguments(TypedDict, total=False):
    """What the rows of a policy loss are worth. Floating-point tensors are of any floating dtype and get no gradient.

    rewards [B], cu_groups [K+1], accuracy [B]: advantages and phi are made here (see `group_advantage`); or
    advantages [B], or token_advantages [N], and phi [B]: given. phi is 1 where neither accuracy nor phi is given.
    old_logp [N]: of the policy that the ratio is against, at this temperature; None: the present one (ratio 1).
    ref_logp [N]: None, or beta = 0: no KL term.
    sampling_logp [N]: what the sampler said; corrects the policy term (importance_sampling_mode) and feeds the
        off-policy mask. NaN: the sampler does not know, no correction. Or the ratio itself:
    importance_ratio [B], or token_importance_ratio [N].
    mask [N] bool: rows that count, also as |o_i|; None: all. Other rows may hold anything, even NaN.
    denominator: number or scalar tensor, what the sum behind the loss is divided by: responses (for the
        aggregations "seq-…") or tokens ("token-mean"). None: as many as this call has, at least 1. With the number of
        the whole global batch, losses, gradients and metrics of micro-batches and ranks add up to the batch's (but
        for an entropy bonus with entropy_aggregation="token-mean", which is a mean over this call, as in TRL).
        A tensor may hold 0: if then no row counts, loss and gradients are 0, else the loss is not finite.
    entropy_threshold: number or scalar tensor, nats: rows below it get no policy term and no bonus. None:
        the quantile 1 - top_entropy_quantile of this call's rows, if that is below 1.

    Any strides do. A call may have no rows, or no responses: loss, metrics and gradients are 0. NaN or an infinity in a
    row that counts goes into the loss and into the gradients of its response, and no further unless `coupling` is
    "batch". Importance ratios are at least 0, which is the caller's to see to.

    Values of CUDA tensors are not looked at, which would wait for the device, but nothing is read out of bounds:
    offsets that do not begin with 0, fall, or do not end where they must make the loss NaN, an id outside of the
    vocabulary makes its row NaN. torch.compile does not look at offsets, either.
    """

    rewards: Tensor | None
    accuracy: Tensor | None
    cu_groups: Tensor | None
    advantages: Tensor | None
    token_advantages: Tensor | None
    phi: Tensor | None
    old_logp: Tensor | None
    ref_logp: Tensor | None
    sampling_logp: Tensor | None
    importance_ratio: Tensor | None
    token_importance_ratio: Tensor | None
    mask: Tensor | None
    denominator: float | Tensor | None
    entropy_threshold: float | Tensor | None


class PolicyRows(NamedTuple):
    """The checked row arguments, as every face gets them: RowArguments without a gradient."""

    cu_seqlens: Tensor  # [B+1] int32|int64
    rewards: Tensor | None = None
    accuracy: Tensor | None = None
    cu_groups: Tensor | None = None
    advantages: Tensor | None = None
    token_advantages: Tensor | None = None
    phi: Tensor | None = None
    old_logp: Tensor | None = None
    ref_logp: Tensor | None = None  # None also when beta is 0
    sampling_logp: Tensor | None = None
    importance_ratio: Tensor | None = None
    token_importance_ratio: Tensor | None = None
    mask: Tensor | None = None
    denominator: float | Tensor | None = None
    entropy_threshold: float | Tensor | None = None
    host_seqlens: Tensor | None = None  # cu_seqlens where the host can read it without waiting


def math_dtype(x: Tensor) -> torch.dtype:
    """What the maths runs in: fp64 for fp64 input, fp32 for everything else."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def weight_of_rows(row_weight: Tensor | float, hidden: Tensor) -> Tensor:
    """[N], contiguous, in the dtype of the maths; of a number, the same for all rows."""
    dtype = math_dtype(hidden)
    if isinstance(row_weight, Tensor):
        return row_weight.to(dtype).contiguous()
    return hidden.new_ones(hidden.shape[0], dtype=dtype) * row_weight  # new_full would be compiled for each value


def coupling(rows: PolicyRows, config: GrpoConfig) -> Literal["row", "response", "batch"]:
    """How far a row's gradient depends on other rows' log-probabilities or entropies.

    "row": made at once with the row; "response": when its response is complete; "batch": when all rows are.
    """
    makes_threshold = config.top_entropy_quantile < 1 and rows.entropy_threshold is None
    masked_entropy = config.top_entropy_quantile < 1 or rows.entropy_threshold is not None
    counts_entropy = config.entropy_coef != 0 and config.entropy_aggregation == "token-mean" and masked_entropy
    if makes_threshold or counts_entropy:
        return "batch"
    corrected = rows.sampling_logp is not None and config.importance_sampling_mode.startswith("sequence")
    if (
        config.importance_sampling_level != "token"
        or config.loss_type in ("gmpo", "vespo")
        or config.off_policy_mask_threshold is not None
        or corrected
    ):
        return "response"
    return "row"
