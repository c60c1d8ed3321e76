"""The row program of one call, as the compiled faces take it: which branches, and the numbers in them."""

from __future__ import annotations

import math
from typing import NamedTuple

from ._rows import PolicyRows
from .config import GrpoConfig

SCALARS = (
    "epsilon_low",
    "epsilon_high",
    "clip_low",
    "clip_high",
    "delta",
    "log_ratio_min",
    "log_ratio_max",
    "sapo_temperature_pos",
    "sapo_temperature_neg",
    "vespo_k_pos",
    "vespo_lambda_pos",
    "vespo_k_neg",
    "vespo_lambda_neg",
    "beta",
    "importance_sampling_clip_min",
    "importance_sampling_clip_max",
    "off_policy_mask_threshold",
)
"""Names of Program.scalars, in their order; `csrc/row_program.h` reads them in the same one."""


class Program(NamedTuple):
    loss_type: str
    level: str  # importance_sampling_level
    kl: str  # kl_estimator, "none" without a reference
    importance: str  # "none", "token_given", "sequence_given", or the importance_sampling_mode
    k3_clamp: bool
    kl_times_ratio: bool  # use_bias_correction_kl
    kl_times_importance: bool  # importance_sampling_on_kl
    importance_mean: bool  # the ratio of a response is of the mean log-ratio, not of the sum
    off_policy_mask: bool
    scalars: list[float]  # SCALARS; infinite where there is no bound


def row_program(rows: PolicyRows, config: GrpoConfig, *, with_reference: bool | None = None) -> Program:
    """with_reference: whether there is a KL term; None: where rows hold ref_logp."""
    if with_reference is None:
        with_reference = rows.ref_logp is not None
    clip_low, clip_high = config.clip_bounds
    named = {
        "clip_low": clip_low,
        "clip_high": clip_high,
        "log_ratio_max": config.log_ratio_bounds[1],
        "delta": math.inf if config.delta is None else config.delta,
        "off_policy_mask_threshold": config.off_policy_mask_threshold or 0.0,
    }
    return Program(
        loss_type=config.loss_type,
        level=config.importance_sampling_level,
        kl=config.kl_estimator if with_reference else "none",
        importance=_importance(rows, config),
        k3_clamp=config.k3_clamp,
        kl_times_ratio=config.use_bias_correction_kl,
        kl_times_importance=config.importance_sampling_on_kl,
        importance_mean=config.importance_sampling_aggregation == "mean",
        off_policy_mask=config.off_policy_mask_threshold is not None,
        scalars=[float(named[n] if n in named else getattr(config, n)) for n in SCALARS],
    )


def _importance(rows: PolicyRows, config: GrpoConfig) -> str:
    if rows.token_importance_ratio is not None:
        return "token_given"
    if rows.importance_ratio is not None:
        return "sequence_given"
    return "none" if rows.sampling_logp is None else config.importance_sampling_mode
