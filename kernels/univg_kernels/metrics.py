"""The metrics vector of the policy losses: sums first, then maxima, so that batches and ranks can be combined."""

from __future__ import annotations

import torch
from torch import Tensor

_SUMS = (
    "num_tokens",
    "kl_sum",
    "entropy_sum",
    "clip_low_sum",
    "clip_high_sum",
    "ratio_sum",
    "sampling_ratio_sum",
    "dropped_sum",
)
_MAXIMA = ("ratio_max", "logp_diff_max", "sampling_ratio_max", "sampling_logp_diff_max")
METRICS: tuple[str, ...] = _SUMS + _MAXIMA
"""Names of the entries of `GrpoOutput.metrics`, all over rows where the mask is True.

num_tokens: rows · kl_sum: the KL estimator's value, before beta and any ratio · entropy_sum: nats · clip_low_sum,
clip_high_sum: rows whose clip took effect (ratio below its bound with A < 0, above it with A > 0; 0 for losses without
one) · ratio_sum, ratio_max: exp(log-ratio) at its level · logp_diff_max: max |logp - old_logp| · sampling_ratio_sum,
sampling_ratio_max: the importance ratio that weighs the policy term, 1 where there is none · dropped_sum: rows whose
policy term a mask removed (importance ratio 0, off-policy, low entropy) · sampling_logp_diff_max:
max |old_logp - sampling_logp|. Maxima are 0 when there is no row.
"""
NUM_SUMS = len(_SUMS)


def combine_metrics(*metrics: Tensor) -> Tensor:
    """Metrics of several calls [len(METRICS)] as those of one: sums are added, maxima are taken."""
    stacked = torch.stack(metrics)
    return torch.cat([stacked[:, :NUM_SUMS].sum(0), stacked[:, NUM_SUMS:].amax(0)])


def summarize(metrics: Tensor) -> dict[str, float]:
    """Read a metrics vector back to the host (one copy), under TRL's names where TRL has the same metric. Means are per
    scored token, at every level of the ratio."""
    m = dict(zip(METRICS, metrics.tolist(), strict=True))
    n = max(m["num_tokens"], 1.0)
    return {
        "num_tokens": m["num_tokens"],
        "kl": m["kl_sum"] / n,
        "entropy": m["entropy_sum"] / n,
        "clip_ratio/low_mean": m["clip_low_sum"] / n,
        "clip_ratio/high_mean": m["clip_high_sum"] / n,
        "clip_ratio/region_mean": (m["clip_low_sum"] + m["clip_high_sum"]) / n,
        "importance_sampling_ratio/mean": m["ratio_sum"] / n,
        "importance_sampling_ratio/max": m["ratio_max"],
        "sampling/logp_difference/max": m["logp_diff_max"],
        "sampling/importance_sampling_ratio/mean": m["sampling_ratio_sum"] / n,
        "sampling/importance_sampling_ratio/max": m["sampling_ratio_max"],
        "sampling/sampling_logp_difference/max": m["sampling_logp_diff_max"],
        "dropped_ratio": m["dropped_sum"] / n,
    }
