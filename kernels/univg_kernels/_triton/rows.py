"""What the kernels of the policy losses are told about their rows, and how it is made from the arguments of the call.

Factors of a row that follow from its response and its group the kernels make themselves, so that a loss whose rows are
independent is one launch. Only what is a matter of all rows comes from a few torch ops before it, as scalars that stay
on the device: the number of rows that count, where the caller gives no denominator and there is a mask; the number of
responses that are not empty; the quantile of the entropy, and how many rows lie above it. Offsets have been through
the door, which puts right on the device (`settle_offsets`, small torch ops as well) those that the host cannot read:
kernels rely on offsets that run from 0 to the end and never fall.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._program import SCALARS, row_program
from .._row_terms import find_entropy_threshold, response_factors, segment_ids
from .._rows import PolicyRows, coupling
from ..config import GrpoConfig
from ..group_advantage.triton_impl import group_advantage
from .launch import vector


class Rows(NamedTuple):
    """Pointers, None for what is not given; one argument of a kernel. The last three: scalars that only the device
    knows."""

    cu_seqlens: Any
    rewards: Any
    accuracy: Any
    cu_groups: Any
    advantages: Any
    token_advantages: Any
    phi: Any
    mask: Any
    old_logp: Any
    ref_logp: Any
    sampling_logp: Any
    importance_ratio: Any
    token_importance_ratio: Any
    denominator: Any
    entropy_denominator: Any
    entropy_threshold: Any


SCALARS_OF_ROWS = ("denominator", "entropy_denominator", "entropy_threshold")
_SETTINGS = ("weight_scale", "entropy_coef", "advantage_eps", "difficulty_power")
Numbers = NamedTuple("Numbers", [(n, Any) for n in (*SCALARS, *_SETTINGS, *SCALARS_OF_ROWS)])  # type: ignore[misc]
"""fp32 arguments of a kernel: no value of them compiles anything."""


class Branches(NamedTuple):
    """The compile-time constants of a kernel. Program's, and:"""

    loss_type: str
    level: str
    kl: str
    importance: str
    scale_rewards: str
    difficulty: str
    bonus: str  # how the entropy bonus is averaged, or "none"
    k3_clamp: bool
    kl_times_ratio: bool
    kl_times_importance: bool
    importance_mean: bool
    off_policy_mask: bool
    entropy_mask: bool
    token_mean: bool  # weights are divided by the length of the response
    coupled: bool  # rows depend on the others of their response
    center_singletons: bool


NUM_CHOICES = 7  # strings among Branches
SCHEMA = "Tensor?[] tensors, float[] numbers, str[] choices, bool[] flags"


class KernelRows(NamedTuple):
    """Rows, Numbers and Branches of one call in the shape that a registered op can take (SCHEMA)."""

    tensors: list[Tensor | None]  # Rows
    numbers: list[float]  # Numbers
    choices: list[str]
    flags: list[bool]


def row_arguments(rows: PolicyRows, config: GrpoConfig, num_rows: int, entropy: Tensor | None = None) -> KernelRows:
    """entropy [N]: needed where `coupling` is "batch". Never waits for the device."""
    branches = _branches(rows, config)
    if rows.rewards is not None and (config.scale_rewards == "batch" or config.normalize_difficulty):
        # Statistics over all groups: not a matter of one row. The factors then come from their own launch.
        advantages, phi = response_factors(rows, config, torch.float32, group_advantage)
        rows = rows._replace(rewards=None, accuracy=None, cu_groups=None, advantages=advantages, phi=phi)
    threshold = _entropy_threshold(rows, config, entropy)
    scalars = (
        _denominator(rows, config, num_rows),
        _entropy_denominator(rows, config, num_rows, threshold, entropy),
        0.0 if threshold is None else threshold,
    )
    vectors = {n: vector(getattr(rows, n)) for n in Rows._fields if n not in (*SCALARS_OF_ROWS, *_AS_THEY_ARE)}
    raw = {n: None if getattr(rows, n) is None else getattr(rows, n).contiguous() for n in _AS_THEY_ARE}
    tensors = [{**vectors, **raw}[n] for n in Rows._fields[:-3]]
    tensors += [x if isinstance(x, Tensor) else None for x in scalars]
    length = config.max_completion_length if config.aggregation == "seq-mean-token-sum-norm" else 1
    assert length is not None  # GrpoConfig
    numbers = [*row_program(rows, config).scalars, 1 / length, config.entropy_coef]
    numbers += [config.advantage_eps, config.difficulty_power]
    numbers += [0.0 if isinstance(x, Tensor) else x for x in scalars]
    choices, flags = branches[:NUM_CHOICES], branches[NUM_CHOICES:]
    return KernelRows(tensors, [float(x) for x in numbers], [str(x) for x in choices], [bool(x) for x in flags])


_AS_THEY_ARE = ("cu_seqlens", "cu_groups", "mask")


def kernel_arguments(
    tensors: Sequence[Tensor | None], numbers: Sequence[float], choices: Sequence[str], flags: Sequence[bool]
) -> dict[str, Any]:
    """Keyword arguments of a kernel, from the parts of KernelRows."""
    rows = Rows(*tensors)
    return {
        "rows": rows,
        "num_groups": 0 if rows.cu_groups is None else rows.cu_groups.numel() - 1,
        "numbers": Numbers(*numbers),
        "BRANCHES": Branches(*choices, *flags),  # type: ignore[arg-type]
    }


def _branches(rows: PolicyRows, config: GrpoConfig) -> Branches:
    """What has no effect in this call is set to one value, so that it makes no binary of its own."""
    program = row_program(rows, config)
    in_kernel = rows.rewards is not None and config.scale_rewards != "batch" and not config.normalize_difficulty
    has_kl, by_sampler = program.kl != "none", program.importance.startswith(("sequence_t", "sequence_m"))
    return Branches(
        loss_type=program.loss_type,
        level=program.level,
        kl=program.kl,
        importance=program.importance,
        scale_rewards=config.scale_rewards if in_kernel else "none",
        difficulty=config.difficulty if in_kernel and rows.accuracy is not None else "none",
        bonus=config.entropy_aggregation if config.entropy_coef else "none",
        k3_clamp=has_kl and program.k3_clamp,
        kl_times_ratio=has_kl and program.kl_times_ratio,
        kl_times_importance=has_kl and program.kl_times_importance and program.importance != "none",
        importance_mean=by_sampler and program.importance_mean,
        off_policy_mask=program.off_policy_mask,
        entropy_mask=rows.entropy_threshold is not None or config.top_entropy_quantile < 1,
        token_mean=config.aggregation == "seq-mean-token-mean",
        coupled=coupling(rows, config) != "row",
        center_singletons=config.center_singletons or not in_kernel,
    )


def _counted(rows: PolicyRows, num_rows: int) -> float | Tensor:
    return max(num_rows, 1) if rows.mask is None else rows.mask.sum().clamp(min=1)


def _denominator(rows: PolicyRows, config: GrpoConfig, num_rows: int) -> float | Tensor:
    responses = rows.cu_seqlens.numel() - 1
    if rows.denominator is not None:
        return rows.denominator
    if config.aggregation == "token-mean":
        return _counted(rows, num_rows)
    if config.count_empty_responses:
        return max(responses, 1)
    lengths = rows.cu_seqlens[1:] - rows.cu_seqlens[:-1]
    if rows.mask is not None:
        seq = segment_ids(rows.cu_seqlens, num_rows)
        lengths = lengths.new_zeros(responses).index_add_(0, seq, rows.mask.to(lengths.dtype))
    return (lengths > 0).sum().clamp(min=1)


def _entropy_threshold(rows: PolicyRows, config: GrpoConfig, entropy: Tensor | None) -> float | Tensor | None:
    if rows.entropy_threshold is not None or config.top_entropy_quantile >= 1:
        return rows.entropy_threshold
    assert entropy is not None  # coupling() is "batch"
    mask = torch.ones_like(entropy, dtype=torch.bool) if rows.mask is None else rows.mask
    return find_entropy_threshold(rows, config, mask.float(), entropy)


def _entropy_denominator(
    rows: PolicyRows, config: GrpoConfig, num_rows: int, threshold: float | Tensor | None, entropy: Tensor | None
) -> float | Tensor:
    if config.entropy_coef == 0 or config.entropy_aggregation != "token-mean":
        return 1.0
    if threshold is None:
        return _counted(rows, num_rows)
    assert entropy is not None  # coupling() is "batch"
    above = entropy.float() >= threshold
    return (above if rows.mask is None else above & rows.mask).sum().clamp(min=1)
