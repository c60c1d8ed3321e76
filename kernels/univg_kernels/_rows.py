"""What the three policy losses know about their rows, and the per-row factors that follow from it.

N rows, B responses, K groups.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypedDict

import torch
from torch import Tensor

from ._checks import FLOATS, LARGEST, check_offsets, check_tensor, is_number, values_at_hand
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


class RowTerms(NamedTuple):
    """Per-row factors, [N] in the dtype of the maths, and the threshold of the entropy.

    L = sum_t weight·(phi·gate·policy_t + beta·kl_t) - sum_t entropy_weight·high_entropy_t·H_t
    """

    advantage: Tensor
    phi: Tensor
    weight: Tensor  # mask / denominator, shared out as the aggregation says; 0 exactly where the mask is False
    entropy_weight: Tensor | None  # holds entropy_coef; None where that is 0
    entropy_threshold: Tensor | None  # scalar


def math_dtype(x: Tensor) -> torch.dtype:
    """What the maths runs in: fp64 for fp64 input, fp32 for everything else."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


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


_PER_RESPONSE = ("rewards", "accuracy", "advantages", "phi", "importance_ratio")
_PER_ROW = ("token_advantages", "old_logp", "ref_logp", "sampling_logp", "token_importance_ratio")


def check_rows(
    op: str, num_rows: int, device: torch.device, config: GrpoConfig, cu_seqlens: Tensor, given: dict[str, Any]
) -> PolicyRows:
    """Raise ValueError for what cannot be, TypeError for an unknown name; give back the arguments, detached."""
    unknown = sorted(given.keys() - RowArguments.__annotations__.keys())
    if unknown:
        raise TypeError(f"{op}: unknown argument {unknown[0]!r}; expected {', '.join(RowArguments.__annotations__)}")
    at = cu_seqlens.device if isinstance(cu_seqlens, Tensor) and cu_seqlens.is_cpu else device
    cu_seqlens = check_offsets(op, "cu_seqlens", cu_seqlens, num_rows, at, "rows N")
    b, sound = cu_seqlens.numel() - 1, []
    if not values_at_hand(cu_seqlens):
        cu_seqlens, ok = settle_offsets(op, "cu_seqlens", cu_seqlens, num_rows)
        sound.append(ok)
    host = cu_seqlens if cu_seqlens.is_cpu else None
    cu_seqlens = cu_seqlens.to(device, non_blocking=True)
    rows = PolicyRows(cu_seqlens, host_seqlens=host, **{k: _detached(v) for k, v in given.items()})
    _check_advantages(op, rows)
    for names, size, hint in ((_PER_RESPONSE, b, "one value per response"), (_PER_ROW, num_rows, "one value per row")):
        for name in names:
            value = getattr(rows, name)
            if value is not None:
                check_tensor(op, name, value, (size,), FLOATS, device, hint)
    if rows.cu_groups is not None:
        check_offsets(op, "cu_groups", rows.cu_groups, b, device, "responses B")
        if not values_at_hand(rows.cu_groups):
            groups, ok = settle_offsets(op, "cu_groups", rows.cu_groups, b)
            rows, sound = rows._replace(cu_groups=groups), [*sound, ok]
    if rows.mask is not None:
        check_tensor(op, "mask", rows.mask, (num_rows,), (torch.bool,), device)
    _check_scalar(op, "denominator", rows.denominator, device, 0.0)
    _check_scalar(op, "entropy_threshold", rows.entropy_threshold, device, -torch.inf)
    ratios = [n for n in ("importance_ratio", "token_importance_ratio") if getattr(rows, n) is not None]
    if len(ratios) == 2 or (ratios and rows.sampling_logp is not None and config.importance_sampling_mode != "none"):
        other = "token_importance_ratio" if len(ratios) == 2 else "sampling_logp"
        raise ValueError(
            f"{op}: give one of importance_ratio, token_importance_ratio and sampling_logp, got {ratios[0]} and "
            f"{other}; for sampling_logp in the off-policy mask only, set importance_sampling_mode='none'"
        )
    for ok in sound:
        worth = {k: getattr(rows, k) for k in ("rewards", "advantages", "token_advantages")}
        rows = rows._replace(**{k: torch.where(ok, v, torch.nan) for k, v in worth.items() if v is not None})
    rows = rows._replace(**{k: v.contiguous() for k, v in rows._asdict().items() if isinstance(v, Tensor)})
    return rows._replace(ref_logp=None) if config.beta == 0 else rows


def _check_advantages(op: str, rows: PolicyRows) -> None:
    given = [n for n in ("rewards", "advantages", "token_advantages") if getattr(rows, n) is not None]
    if len(given) != 1:
        raise ValueError(
            f"{op}: give either rewards with cu_groups [and accuracy], or advantages (or token_advantages) [and phi]; "
            f"got {' and '.join(given) if given else 'neither'}"
        )
    if rows.rewards is not None and (rows.cu_groups is None or rows.phi is not None):
        raise ValueError(f"{op}: rewards need cu_groups [K+1], and their phi follows from accuracy; drop phi")
    if rows.rewards is None and (rows.cu_groups is not None or rows.accuracy is not None):
        raise ValueError(f"{op}: cu_groups and accuracy belong to rewards; with {given[0]} give phi [B] instead")


def _check_scalar(op: str, name: str, value: Any, device: torch.device, low: float) -> None:
    zero = isinstance(value, Tensor)  # may hold 0: a count that nobody has looked at
    if isinstance(value, Tensor):
        check_tensor(op, name, value, (), (*FLOATS, torch.int64, torch.int32), device)
        if not values_at_hand(value):
            return
        value = value.item()
    if value is not None and not (is_number(value) and (low < value <= LARGEST or (zero and value == 0))):
        bound = "" if low == -torch.inf else f" {'>=' if zero else '>'} {low:g}"
        raise ValueError(f"{op}: {name} must be a finite number{bound}, got {value!r}")


def _detached(x: Any) -> Any:
    return x.detach() if isinstance(x, Tensor) else x


def settle_offsets(op: str, name: str, offsets: Tensor, end: int) -> tuple[Tensor, Tensor]:
    """Offsets that the host does not know, as they must be: from 0 to `end`, never falling; and whether they were so.

    Kernels then stay inside of their tensors, and what wrong offsets are the offsets of is made NaN. Never waits.
    """
    if offsets.numel() == 1 and end > 0:
        raise ValueError(
            f"{op}: {name} must end at {end}, got one offset; build it as the cumulative sum of the lengths"
        )
    settled = offsets.clamp(0, end).cummax(0).values
    settled[:1] = 0
    settled[-1:] = end
    return settled, (settled == offsets).all()


def segment_ids(offsets: Tensor, count: int) -> Tensor:
    """Which segment each of `count` items lies in [count] int64; never waits for the device."""
    items = torch.arange(count, device=offsets.device, dtype=offsets.dtype)
    return torch.searchsorted(offsets, items, right=True) - 1


def response_factors(
    rows: PolicyRows,
    config: GrpoConfig,
    dtype: torch.dtype,
    group_advantage: Callable[[Tensor, Tensor, Tensor | None, GrpoConfig], GroupAdvantage],
) -> tuple[Tensor | None, Tensor | None]:
    """(advantages [B], phi [B]) of what the caller gave; None: token_advantages hold them; phi is 1."""
    if rows.rewards is None:
        return None if rows.advantages is None else rows.advantages.to(dtype), rows.phi
    assert rows.cu_groups is not None  # check_rows
    accuracy = None if rows.accuracy is None else rows.accuracy.to(dtype)
    stats = group_advantage(rows.rewards.to(dtype), rows.cu_groups, accuracy, config)
    return stats.advantages, stats.phi


def row_terms(
    rows: PolicyRows,
    config: GrpoConfig,
    advantages: Tensor | None,
    phi: Tensor | None,
    num_rows: int,
    dtype: torch.dtype,
    entropy: Tensor | None,
) -> RowTerms:
    """Spread the factors of the responses (advantages, phi: [B]) over their rows [N].

    entropy [N]: needed where `coupling` is "batch", otherwise not looked at. Never waits for the device.
    """
    device, b = rows.cu_seqlens.device, rows.cu_seqlens.numel() - 1
    seq = segment_ids(rows.cu_seqlens, num_rows)
    mask = torch.ones(num_rows, dtype=dtype, device=device) if rows.mask is None else rows.mask.to(dtype)
    lengths = torch.zeros(b, dtype=dtype, device=device).index_add_(0, seq, mask)
    if advantages is None:
        assert rows.token_advantages is not None  # check_rows
        advantage = rows.token_advantages.to(dtype)
    else:
        advantage = advantages.to(dtype)[seq]
    advantage = torch.where(mask != 0, advantage, 0.0)
    threshold = find_entropy_threshold(rows, config, mask, entropy)
    weight = torch.where(mask != 0, mask / _denominator(rows, config, lengths), 0.0)  # 0/0 is not NaN
    if config.aggregation == "seq-mean-token-mean":
        weight = weight / lengths.clamp(min=1)[seq]
    elif config.aggregation == "seq-mean-token-sum-norm":
        assert config.max_completion_length is not None  # GrpoConfig
        weight = weight / config.max_completion_length
    entropy_weight = None
    if config.entropy_coef != 0:
        entropy_weight = weight
        if config.entropy_aggregation == "token-mean":
            counted = mask
            if threshold is not None:
                assert entropy is not None
                counted = mask * (torch.where(mask != 0, entropy.detach().to(dtype), 0.0) >= threshold)
            entropy_weight = mask / counted.sum().clamp(min=1)
        entropy_weight = config.entropy_coef * entropy_weight
    phi_rows = torch.ones_like(mask) if phi is None else phi.to(dtype)[seq]
    return RowTerms(advantage, phi_rows, weight.to(dtype), entropy_weight, threshold)


def _denominator(rows: PolicyRows, config: GrpoConfig, lengths: Tensor) -> float | Tensor:
    if rows.denominator is not None:
        return rows.denominator
    if config.aggregation == "token-mean":
        return lengths.sum().clamp(min=1)
    if config.count_empty_responses:
        return max(lengths.numel(), 1)
    return (lengths > 0).sum().clamp(min=1)


def find_entropy_threshold(rows: PolicyRows, config: GrpoConfig, mask: Tensor, entropy: Tensor | None) -> Tensor | None:
    if rows.entropy_threshold is not None:
        given = rows.entropy_threshold
        # A number is written by the device: copying it there would end the capture of a CUDA graph.
        return given.to(mask) if isinstance(given, Tensor) else mask.new_full((), given)
    if config.top_entropy_quantile >= 1:
        return None
    assert entropy is not None  # coupling() is "batch"
    if not mask.numel():
        return mask.new_zeros(())
    counted = torch.where(mask != 0, entropy.detach().to(mask.dtype), torch.nan)
    return torch.nanquantile(counted, 1 - config.top_entropy_quantile)
