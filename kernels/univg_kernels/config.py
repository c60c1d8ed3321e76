"""Every scalar of the GRPO family in one frozen dataclass, and the conventions of other codebases by name."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

AGGREGATION = {
    "grpo": "seq-mean-token-mean",
    "bnpo": "token-mean",
    "dr_grpo": "seq-mean-token-sum-norm",
    "dapo": "token-mean",
    "cispo": "token-mean",
    "sapo": "seq-mean-token-mean",
    "luspo": "seq-mean-token-sum",
    "vespo": "token-mean",
    "gmpo": "seq-mean-token-mean",
    "reinforce": "token-mean",
}
"""What each loss type is a mean over, where `loss_aggregation` does not say."""

CHOICES: dict[str, tuple[str, ...]] = {
    "loss_type": tuple(AGGREGATION),
    "importance_sampling_level": ("token", "sequence", "sequence_token"),
    "loss_aggregation": ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"),
    "kl_estimator": ("k1", "k2", "k3", "k1+", "k3+"),
    "importance_sampling_mode": ("none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"),
    "importance_sampling_aggregation": ("sum", "mean"),
    "entropy_aggregation": ("token-mean", "loss"),
    "difficulty": ("exp", "power", "log", "none"),
    "scale_rewards": ("group", "batch", "none"),
}
# name -> (lowest value, whether it must lie above that, whether infinity is a value)
RANGES: dict[str, tuple[float, bool, bool]] = {
    "epsilon_low": (0.0, False, False),
    "epsilon_high": (0.0, False, False),
    "delta": (0.0, True, False),
    "sapo_temperature_pos": (0.0, True, False),
    "sapo_temperature_neg": (0.0, True, False),
    "vespo_k_pos": (0.0, False, False),
    "vespo_lambda_pos": (1e-4, False, False),
    "vespo_k_neg": (0.0, False, False),
    "vespo_lambda_neg": (1e-4, False, False),
    "log_ratio_min": (-math.inf, False, False),
    "log_ratio_max": (-math.inf, True, True),
    "beta": (0.0, False, False),
    "entropy_coef": (-math.inf, True, False),
    "top_entropy_quantile": (0.0, True, False),
    "importance_sampling_clip_min": (0.0, False, False),
    "importance_sampling_clip_max": (0.0, True, True),
    "off_policy_mask_threshold": (-math.inf, True, False),
    "temperature": (0.0, True, False),
    "softcap": (0.0, True, False),
    "logit_scale": (0.0, True, False),
    "difficulty_power": (0.0, False, False),
    "advantage_eps": (0.0, False, False),
}


def check_choice(op: str, name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{op}: {name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_number(op: str, name: str, value: Any, low: float, *, above: bool = False, infinite: bool = False) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ValueError(f"{op}: {name} must be a number, got {value!r}")
    inside = value > low if above else value >= low
    if not inside or (value == math.inf and not infinite):
        bound = "" if low == -math.inf else f" and {'>' if above else '>='} {low:g}"
        raise ValueError(f"{op}: {name} must be {'a number' if infinite else 'finite'}{bound}, got {value!r}")


def check_normalize(op: str, difficulty: str, normalize: bool) -> None:
    if normalize and difficulty == "log":
        raise ValueError(
            f"{op}: the difficulty 'log' cannot be normalised to a mean of one, got normalisation with it: it is "
            "negative above mIoU = 0.98 and its mean may be 0; use 'exp' or 'power', or do not normalise"
        )


def check_flag(op: str, name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{op}: {name} must be True or False, got {value!r}")


def check_whole(op: str, name: str, value: Any) -> None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise ValueError(f"{op}: {name} must be a whole number >= 1 or None, got {value!r}")


@dataclass(frozen=True)
class GrpoConfig:
    """The settings of `grpo_loss`, `linear_grpo_loss`, `policy_loss` and `group_advantage`.

    The loss (docs/losses.md has each formula, gradient and source)
        loss_type: the row of the loss table. importance_sampling_level: "token", "sequence" (GSPO) or
            "sequence_token" (GSPO-token). vespo has a ratio of its own beside it; gmpo and reinforce take "token".
        loss_aggregation: what the loss is a mean over, in verl's words; None: as the loss type has it (AGGREGATION).
            "seq-mean-token-sum-norm" divides by max_completion_length.
        count_empty_responses: whether a response without a row that counts counts in a mean over responses.
        epsilon_low, epsilon_high: the ratio is clipped to [1 - epsilon_low, 1 + epsilon_high]; for gmpo the
            log-ratio to [-epsilon_low, epsilon_high]; for cispo epsilon_high is the bound itself, unless
            cispo_two_sided.
        delta: upper bound of the ratio on the unclipped side (two-sided or dual clip); None for no bound.
        log_ratio_min, log_ratio_max: bounds of the log-ratio; no gradient outside. Above 88, where e to that power is
            infinite in fp32, no log-ratio goes in any case.
        sapo_temperature_pos, sapo_temperature_neg, vespo_k_*, vespo_lambda_*: of these two losses.
    KL: beta: its weight; 0 removes it. kl_estimator: "k1", "k2", "k3"; with "+" the value of it, the gradient of k2.
        k3_clamp: k3 of a difference within ±20, itself within ±10. use_bias_correction_kl: KL times the ratio.
    Entropy: entropy_coef: weight of the bonus, a mean over tokens or (entropy_aggregation="loss") like the loss.
        top_entropy_quantile: only this share of the tokens, those of highest entropy, gets a policy term.
    Sampler and policy: importance_sampling_mode: how exp(old_logp - sampling_logp) corrects the policy term, where
            sampling_logp is given: cut to [clip_min, clip_max] or 0 outside, per token or per response, there
            over the sum or the mean of the log-ratios (importance_sampling_aggregation).
        importance_sampling_on_kl: whether it weighs the KL term, too.
        off_policy_mask_threshold: drop the policy term of a response with A < 0 whose mean of
            sampling_logp (or old_logp) - logp lies above; None: keep all.
    Logits: z·logit_scale, then softcap·tanh(·/softcap) if softcap, then divided by temperature; columns from vocab_size
        on (padding) do not exist.
    Groups: difficulty, difficulty_power, normalize_difficulty: the weight phi of a group, see `difficulty_weight`.
        scale_rewards: what divides the centred reward: the "group" std, the "batch" std, or "none" of them.
        advantage_eps: added to that std. center_singletons: False leaves the reward of a group of one as it is.

    Raises ValueError for a value that is out of range, and for settings that contradict each other.
    """

    loss_type: str = "grpo"
    importance_sampling_level: str = "token"
    loss_aggregation: str | None = None
    count_empty_responses: bool = True
    max_completion_length: int | None = None
    epsilon_low: float = 0.2
    epsilon_high: float = 0.2
    delta: float | None = None
    log_ratio_min: float = -math.inf
    log_ratio_max: float = math.inf
    cispo_two_sided: bool = False
    sapo_temperature_pos: float = 1.0
    sapo_temperature_neg: float = 1.05
    vespo_k_pos: float = 2.0
    vespo_lambda_pos: float = 3.0
    vespo_k_neg: float = 3.0
    vespo_lambda_neg: float = 2.0
    beta: float = 0.04
    kl_estimator: str = "k3"
    k3_clamp: bool = False
    use_bias_correction_kl: bool = False
    entropy_coef: float = 0.0
    entropy_aggregation: str = "token-mean"
    top_entropy_quantile: float = 1.0
    importance_sampling_mode: str = "sequence_mask"
    importance_sampling_aggregation: str = "sum"
    importance_sampling_clip_min: float = 0.0
    importance_sampling_clip_max: float = 3.0
    importance_sampling_on_kl: bool = False
    off_policy_mask_threshold: float | None = None
    temperature: float = 1.0
    softcap: float | None = None
    logit_scale: float = 1.0
    vocab_size: int | None = None
    difficulty: str = "exp"
    difficulty_power: float = 1.0
    normalize_difficulty: bool = False
    scale_rewards: str = "group"
    advantage_eps: float = 1e-4
    center_singletons: bool = True

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) is not None:
                check_choice("GrpoConfig", name, getattr(self, name), choices)
        for name, (low, above, infinite) in RANGES.items():
            value = getattr(self, name)
            if value is not None and not (name == "log_ratio_min" and value == -math.inf):
                check_number("GrpoConfig", name, value, low, above=above, infinite=infinite)
        for name in ("max_completion_length", "vocab_size"):
            check_whole("GrpoConfig", name, getattr(self, name))
        for field in fields(self):
            if field.type == "bool":
                check_flag("GrpoConfig", field.name, getattr(self, field.name))
        self._check_together()

    def _check_together(self) -> None:
        check_normalize("GrpoConfig", self.difficulty, self.normalize_difficulty)
        if self.top_entropy_quantile > 1.0:
            raise ValueError(f"GrpoConfig: top_entropy_quantile must be in (0, 1], got {self.top_entropy_quantile!r}")
        if self.importance_sampling_clip_min > self.importance_sampling_clip_max:
            raise ValueError(
                "GrpoConfig: importance_sampling_clip_min must not lie above importance_sampling_clip_max, got "
                f"{self.importance_sampling_clip_min} and {self.importance_sampling_clip_max}"
            )
        if self.log_ratio_min > self.log_ratio_max:
            raise ValueError(
                "GrpoConfig: log_ratio_min must not lie above log_ratio_max, got "
                f"{self.log_ratio_min} and {self.log_ratio_max}"
            )
        if self.aggregation == "seq-mean-token-sum-norm" and self.max_completion_length is None:
            raise ValueError(
                f"GrpoConfig: loss_type={self.loss_type!r} with loss_aggregation={self.aggregation!r} needs "
                "max_completion_length, got None; give the longest completion that sampling allows"
            )
        if self.loss_type in ("gmpo", "reinforce") and self.importance_sampling_level != "token":
            raise ValueError(
                f"GrpoConfig: loss_type={self.loss_type!r} has its own ratio and takes "
                f"importance_sampling_level='token', got {self.importance_sampling_level!r}"
            )

    @property
    def aggregation(self) -> str:
        return self.loss_aggregation or AGGREGATION[self.loss_type]

    @property
    def log_ratio_bounds(self) -> tuple[float, float]:
        return self.log_ratio_min, min(self.log_ratio_max, 88.0)

    @property
    def clip_bounds(self) -> tuple[float, float]:
        """The ratios at which the loss type clips; (-inf, inf) for one that does not."""
        if self.loss_type in ("sapo", "vespo", "reinforce"):
            return -math.inf, math.inf
        if self.loss_type == "gmpo":
            return math.exp(-self.epsilon_low), math.exp(self.epsilon_high)
        if self.loss_type == "cispo" and not self.cispo_two_sided:
            return -math.inf, self.epsilon_high
        return 1 - self.epsilon_low, 1 + self.epsilon_high

    @classmethod
    def like(cls, codebase: str, **settings: Any) -> GrpoConfig:
        """The conventions and the defaults of "trl", "verl", "univg_r1" or "ms_swift", with `settings` on top.

        What these presets equal, option by option, is proved in tests/ops/test_like_*.py against their own code;
        `conventions` names the few things that no setting can match. Raises ValueError for another name and for
        settings in which the codebase cannot be matched.
        """
        from .conventions import settings_like

        return cls(**settings_like(codebase, settings))


def check_config(op: str, config: Any) -> GrpoConfig:
    """The config of a call; the default one for None."""
    if config is None:
        return GrpoConfig()
    if not isinstance(config, GrpoConfig):
        raise ValueError(f"{op}: config must be a GrpoConfig or None, got {type(config).__name__}; use GrpoConfig(...)")
    return config
