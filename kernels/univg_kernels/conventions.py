"""Where codebases differ in what they call by one name. TRL 1.16, verl 0.9, UniVG-R1's trainer, ms-swift 4.6."""

from __future__ import annotations

import math
from typing import Any

from .config import check_choice

TRL: dict[str, Any] = {
    "loss_type": "dapo",
    "beta": 0.0,
    "use_bias_correction_kl": True,
    "importance_sampling_mode": "sequence_mask",
    "difficulty": "none",
}
VERL: dict[str, Any] = {
    "loss_aggregation": "token-mean",
    "count_empty_responses": False,
    "delta": 3.0,
    "log_ratio_min": -20.0,
    "log_ratio_max": 20.0,
    "cispo_two_sided": True,
    "beta": 0.0,
    "k3_clamp": True,
    "entropy_aggregation": "loss",
    "importance_sampling_mode": "token_truncate",
    "importance_sampling_clip_max": 2.0,
    "difficulty": "none",
    "advantage_eps": 1e-6,
    "center_singletons": False,
}
UNIVG_R1: dict[str, Any] = {"loss_type": "grpo", "beta": 0.04, "difficulty": "exp"}
MS_SWIFT: dict[str, Any] = {
    "loss_type": "grpo",
    "beta": 0.04,
    "k3_clamp": True,
    "importance_sampling_mode": "token_truncate",
    "importance_sampling_aggregation": "mean",
    "importance_sampling_on_kl": True,
    "difficulty": "none",
}
PRESETS = {"trl": TRL, "verl": VERL, "univg_r1": UNIVG_R1, "ms_swift": MS_SWIFT}


def settings_like(codebase: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Arguments of GrpoConfig: the preset, what follows from the settings there, and the settings."""
    check_choice("GrpoConfig.like", "codebase", codebase, tuple(PRESETS))
    merged = PRESETS[codebase] | settings
    if codebase == "verl":
        merged = PRESETS[codebase] | _verl(merged) | settings
    if codebase == "ms_swift" and merged.get("off_policy_mask_threshold") is not None:
        raise ValueError(
            "GrpoConfig.like('ms_swift'): off_policy_mask_threshold must be None, got "
            f"{merged['off_policy_mask_threshold']!r}; ms-swift takes dropped responses out of its token counts, too: "
            "give mask and denominator instead"
        )
    return merged


def _verl(settings: dict[str, Any]) -> dict[str, Any]:
    """verl's policy losses differ in what they clamp and in what they are a mean over."""
    if settings.get("loss_type") == "gmpo":
        own = {"loss_aggregation": "seq-mean-token-mean", "count_empty_responses": True, "delta": None}
        return own | {"log_ratio_min": -math.inf, "log_ratio_max": math.inf}
    if settings.get("loss_type") == "sapo":
        return {"loss_aggregation": "seq-mean-token-mean"}
    if settings.get("importance_sampling_level") == "sequence_token":
        return {"delta": None, "log_ratio_min": -math.inf, "log_ratio_max": 10.0}
    return {}
