"""Where codebases differ in what they call by one name. TRL 1.16, verl 0.9, UniVG-R1's trainer, ms-swift 4.6.

What no setting matches: TRL's gmpo counts an empty response as a loss of -A (a constant, no gradient); verl's gmpo
takes the mean of KL and entropy over responses that are not empty, that of the policy term over all, and a dropped
importance ratio for 1e-10; verl and ms-swift bound |old_logp - sampling_logp| by 20, verl adds 1e-8 to the length of a
response, and both give NaN where we give 0 (a batch without a token; UniVG-R1 already for one empty response).

What has no name here: verl's losses dppo_tv, dppo_kl, clip_cov, kl_cov and dro, its KL "abs" and the batch-normalised
sampler weights; ms-swift's real and fipo; TRL's normalize_then_sum of rewards.
"""

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
UNIVG_R1: dict[str, Any] = {
    "loss_type": "grpo",
    "beta": 0.04,
    "importance_sampling_mode": "none",
    "difficulty": "exp",
}
MS_SWIFT: dict[str, Any] = {
    "loss_type": "grpo",
    "beta": 0.04,
    "k3_clamp": True,
    "importance_sampling_mode": "none",
    "importance_sampling_aggregation": "mean",
    "importance_sampling_clip_max": 2.0,
    "importance_sampling_on_kl": True,
    "difficulty": "none",
}
# What each has of the loss table, as (loss types, levels), where its name is ours.
_CLIPPED = ("grpo", "bnpo", "dr_grpo", "dapo")
SUPPORTED: dict[str, tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]] = {
    "trl": (((*_CLIPPED, "luspo", "cispo", "sapo", "vespo"), ("token", "sequence")), (("gmpo",), ("token",))),
    # vanilla is grpo, gpg is reinforce, geo_mean is gmpo, gspo is grpo at level sequence_token
    "verl": ((("grpo", "cispo", "sapo", "gmpo", "reinforce"), ("token",)), (("grpo",), ("sequence_token",))),
    "univg_r1": ((("grpo",), ("token",)),),
    "ms_swift": (((*_CLIPPED, "cispo", "sapo"), ("token", "sequence", "sequence_token")),),
}
PRESETS = {"trl": TRL, "verl": VERL, "univg_r1": UNIVG_R1, "ms_swift": MS_SWIFT}


def settings_like(codebase: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Arguments of GrpoConfig: the preset, what follows from the settings there, and the settings."""
    check_choice("GrpoConfig.like", "codebase", codebase, tuple(PRESETS))
    merged = PRESETS[codebase] | settings
    _check_supported(codebase, merged.get("loss_type", "grpo"), merged.get("importance_sampling_level", "token"))
    if codebase == "trl" and merged["loss_type"] == "gmpo":  # its own trainer there, without these
        own = {"epsilon_low": 0.4, "epsilon_high": 0.4, "use_bias_correction_kl": False}
        return merged | own | {"importance_sampling_mode": "none"} | settings
    if codebase == "verl":
        return PRESETS[codebase] | _verl(merged) | settings
    if codebase == "ms_swift":
        _check_ms_swift(merged)
    return merged


def _check_supported(codebase: str, loss_type: str, level: str) -> None:
    if any(loss_type in losses and level in levels for losses, levels in SUPPORTED[codebase]):
        return
    has = "; ".join(f"{', '.join(losses)} at {' or '.join(levels)}" for losses, levels in SUPPORTED[codebase])
    raise ValueError(
        f"GrpoConfig.like({codebase!r}): loss_type and importance_sampling_level must be that codebase's own ({has}), "
        f"got {loss_type!r} and {level!r}; what others call a loss type may be its loss_aggregation"
    )


def _verl(settings: dict[str, Any]) -> dict[str, Any]:
    """verl's policy losses differ in what they clamp and in what they are a mean over."""
    loss_type = settings.get("loss_type", "grpo")
    if loss_type in ("gmpo", "sapo"):
        own = {"loss_aggregation": "seq-mean-token-mean", "delta": None}
        if settings["loss_aggregation"] not in (VERL["loss_aggregation"], own["loss_aggregation"]):
            raise ValueError(
                f"GrpoConfig.like('verl'): loss_aggregation must be 'seq-mean-token-mean' for {loss_type}, got "
                f"{settings['loss_aggregation']!r}; verl's policy term has no other there"
            )
        bounds = {"log_ratio_min": -math.inf, "log_ratio_max": math.inf, "count_empty_responses": True}
        return own | (bounds if loss_type == "gmpo" else {})
    if settings.get("importance_sampling_level") == "sequence_token":
        return {"delta": None, "log_ratio_min": -math.inf, "log_ratio_max": 10.0}
    if loss_type != "grpo":  # clip_ratio_c is of vanilla alone
        return {"delta": None}
    high = settings.get("epsilon_high", 0.2)
    check_dual_clip("GrpoConfig.like('verl'): delta (clip_ratio_c)", settings["delta"], high)
    return {}


def check_dual_clip(setting: str, delta: float | None, epsilon_high: float) -> None:
    """ValueError for a bound that TRL's two-sided clip and the dual clip of verl and EasyR1 do not share.

    The dual clip bounds rows with A < 0 alone; above the upper clip that is all that the bound can reach.
    """
    if delta is not None and delta < 1 + epsilon_high:
        raise ValueError(
            f"{setting} must be at least 1 + the upper clip ratio = {1 + epsilon_high}, got {delta}; below it a dual "
            "clip, which is for A < 0 alone, is another function"
        )


def _check_ms_swift(settings: dict[str, Any]) -> None:
    if settings.get("off_policy_mask_threshold") is not None:
        raise ValueError(
            "GrpoConfig.like('ms_swift'): off_policy_mask_threshold must be None, got "
            f"{settings['off_policy_mask_threshold']!r}; ms-swift takes dropped responses out of its token counts: "
            "give mask and denominator instead"
        )
    if settings["importance_sampling_mode"] == "sequence_mask":
        raise ValueError(
            "GrpoConfig.like('ms_swift'): importance_sampling_mode must not be 'sequence_mask'; ms-swift weighs the "
            "responses that it keeps by their token ratios: give token_importance_ratio instead"
        )
