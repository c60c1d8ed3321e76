"""The section `grpo` as the loss kernels take it."""

from __future__ import annotations

import re
from dataclasses import fields
from difflib import get_close_matches
from typing import TYPE_CHECKING

from univg_kernels import GrpoConfig

if TYPE_CHECKING:
    from univg_fast.config.schema import GrpoStageConfig

OPTIONS = tuple(item.name for item in fields(GrpoConfig))
# Options that loss_options may not set, and why; those with a key of their own are found by their name.
REFUSED = {
    "vocab_size": "the model and the rollout know it",
    "softcap": "the models of this trainer have none",
    "logit_scale": "the models of this trainer have none",
    "top_entropy_quantile": "the quantile is over the whole step, whose rows are scored one after the other",
}


def loss_config(grpo: GrpoStageConfig) -> GrpoConfig:
    """ValueError ("key: …") where a loss option is unknown, out of range, or contradicts another one.

    The sampler is the policy itself, so its log-probs correct nothing unless loss_options.importance_sampling_mode
    says so.
    """
    options = {"importance_sampling_mode": "none"} | grpo.loss_options
    own = {
        "loss_type": grpo.loss_type,
        "importance_sampling_level": grpo.importance_sampling_level,
        "max_completion_length": grpo.max_completion_length,
        "epsilon_low": grpo.epsilon_low,
        "epsilon_high": grpo.epsilon_high,
        "beta": grpo.beta,
        "temperature": grpo.temperature,
        "difficulty": grpo.difficulty,
        "difficulty_power": grpo.difficulty_power,
        "normalize_difficulty": grpo.normalize_difficulty,
        "scale_rewards": grpo.scale_rewards,
    }
    for name in options:
        if name in own:
            raise ValueError(f"grpo.loss_options: expected no {name}, which is a key of its own; set grpo.{name}")
        if name in REFUSED:
            raise ValueError(f"grpo.loss_options: expected no {name}: {REFUSED[name]}")
        if name not in OPTIONS:
            near = get_close_matches(name, OPTIONS, 1, 0.6)
            hint = f"; did you mean {near[0]!r}?" if near else f"; expected some of {', '.join(OPTIONS)}"
            raise ValueError(f"grpo.loss_options: unknown option {name!r}{hint}")
    try:
        config = GrpoConfig(**own, **options)  # type: ignore[arg-type]
    except ValueError as error:
        told = str(error).removeprefix("GrpoConfig: ")
        culprit = next((name for name in re.findall(r"\w+", told) if name in OPTIONS), "")
        key = f"grpo.{culprit}" if culprit in own else "grpo.loss_options"
        raise ValueError(f"{key}: {told}") from None
    if config.entropy_coef != 0 and config.entropy_aggregation == "token-mean":
        raise ValueError(
            "grpo.loss_options: expected entropy_aggregation: loss beside entropy_coef, got token-mean, which is a "
            "mean over one row and not over the step"
        )
    if config.loss_type == "cispo" and not config.cispo_two_sided and config.epsilon_high < 1:
        raise ValueError(
            f"grpo.epsilon_high: expected at least 1 with loss_type=cispo, whose weight is min(ratio, epsilon_high), "
            f"got {config.epsilon_high:g}; 5.0 is usual, or set loss_options.cispo_two_sided"
        )
    return config


def sampler_matters(config: GrpoConfig) -> bool:
    """Whether the loss looks at what the sampler said its tokens' log-probs were."""
    return config.importance_sampling_mode != "none" or config.off_policy_mask_threshold is not None
