"""Every scalar of the GRPO family in one frozen dataclass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

SUPPORTED: dict[str, tuple[str, ...]] = {
    "loss_type": ("grpo",),
    "importance_sampling_level": ("token",),
    "kl_estimator": ("k3",),
    "difficulty": ("exp", "power", "log", "none"),
    "scale_rewards": ("group", "batch", "none"),
}


def check_choice(op: str, name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{op}: {name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def _check_number(name: str, value: Any, low: float, *, open_end: bool = False) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ValueError(f"GrpoConfig: {name} must be a number, got {value!r}")
    if not (value > low if open_end else value >= low) or value == float("inf"):
        bound = f"> {low}" if open_end else f">= {low}"
        raise ValueError(f"GrpoConfig: {name} must be finite and {bound}, got {value!r}")


@dataclass(frozen=True)
class GrpoConfig:
    """The settings of `grpo_loss`, `linear_grpo_loss`, `policy_loss` and `group_advantage`.

    loss_type, importance_sampling_level, kl_estimator: which row of the loss table; see SUPPORTED.
    epsilon_low, epsilon_high: the ratio is clipped to [1 - epsilon_low, 1 + epsilon_high].
    delta: upper bound of the ratio on the unclipped side (two-sided clipping); None for no bound.
    beta: weight of the KL term; 0 removes it.
    temperature: logits are divided by it before the softmax.
    difficulty, difficulty_power, normalize_difficulty: the weight phi of a group, see `difficulty_weight`.
    scale_rewards: what divides the centred reward: the "group" std, the "batch" std, or "none" of them.
    advantage_eps: added to that std.

    Raises ValueError for a value that is out of range or not supported yet.
    """

    loss_type: str = "grpo"
    importance_sampling_level: str = "token"
    epsilon_low: float = 0.2
    epsilon_high: float = 0.2
    delta: float | None = None
    beta: float = 0.04
    kl_estimator: str = "k3"
    temperature: float = 1.0
    difficulty: str = "exp"
    difficulty_power: float = 1.0
    normalize_difficulty: bool = False
    scale_rewards: str = "group"
    advantage_eps: float = 1e-4

    def __post_init__(self) -> None:
        for name, choices in SUPPORTED.items():
            check_choice("GrpoConfig", name, getattr(self, name), choices)
        for name in ("epsilon_low", "epsilon_high", "beta", "advantage_eps", "difficulty_power"):
            _check_number(name, getattr(self, name), 0.0)
        _check_number("temperature", self.temperature, 0.0, open_end=True)
        if self.delta is not None:
            _check_number("delta", self.delta, 0.0, open_end=True)
