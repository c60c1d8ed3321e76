"""ms-swift 4.6.0's own loss: `GRPOTrainer._compute_loss_and_metrics`, on given log-probabilities."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from .problem import Problem
from .source import dataclass_defaults, functions, methods, need

need("ms_swift", "4.6.0")
_GRPO = "swift/rlhf_trainers/grpo_trainer.py"
_CONSTANTS = functions(_GRPO, "WINDOW_NORMALIZED_LOSS_TYPES")
_SMALL = functions("trl/trainer/utils.py", "nanmin", "nanmax")  # ms-swift imports TRL's
_METHODS = (
    "_compute_loss_and_metrics",
    "_undo_gradient_accumulation_scaling",
    "_get_rollout_is_correction",
    "_compute_sequence_level_ratios",
    "_apply_rollout_importance_sampling",
    "_compute_off_policy_sequence_mask",
    "_compute_rollout_offpolicy_metrics",
    "_compute_is_correction_metrics",
)
_Grpo = methods(
    _GRPO,
    "GRPOTrainer",
    *_METHODS,
    gather=lambda x: x,
    gather_object=lambda x: x,
    WINDOW_NORMALIZED_LOSS_TYPES=_CONSTANTS["WINDOW_NORMALIZED_LOSS_TYPES"],
    **_SMALL,
)
_advantages = functions(
    "swift/rl_core/advantage.py",
    "compute_advantages",
    **functions("swift/utils/torch_utils.py", "nanstd"),
)["compute_advantages"]


def defaults() -> dict[str, Any]:
    return dataclass_defaults("swift/rlhf_trainers/args_mixin.py", "GRPOArgumentsMixin")


def trainer(log_probs: tuple[Tensor, Tensor], **settings: Any) -> Any:
    own = {
        "loss_type": "grpo",
        "importance_sampling_level": "token",
        "epsilon_low": 0.2,
        "epsilon_high": 0.2,
        "delta": None,
        "beta": 0.04,
        "top_entropy_quantile": 1.0,
        "tau_pos": 1.0,
        "tau_neg": 1.05,
        "rollout_importance_sampling_mode": None,
        "rollout_importance_sampling_threshold": 2.0,
        "off_policy_sequence_mask_delta": None,
        "max_completion_length": 256,
        "current_gradient_accumulation_steps": 1,
    }
    assert settings.keys() <= own.keys(), settings
    self = _Grpo()
    self.__dict__.update(own | settings)
    self.compute_entropy = self.top_entropy_quantile < 1
    steps = self.current_gradient_accumulation_steps
    self.args = SimpleNamespace(
        log_entropy=False,
        top_entropy_quantile=self.top_entropy_quantile,
        delta=self.delta,
        gradient_accumulation_steps=steps,
    )
    self.model = SimpleNamespace(training=True)
    self.accelerator = SimpleNamespace(num_processes=1, gather_for_metrics=lambda x: x)
    self._get_per_token_logps_and_entropies = lambda *_, **__: log_probs
    self.kl_in_reward = self.overlong_filter = self.log_rollout_offpolicy_metrics = False
    self.disable_rollout_importance_sampling = self._has_teacher = self.model_accepts_loss_kwargs = False
    self.compute_loss_func = self.chord_sft_iterator = None
    self.sdar_loss_coef = 0.0
    return self


def loss(
    problem: Problem,
    log_probs: tuple[Tensor, Tensor],
    *,
    sampled: bool = False,
    per_token: bool = True,
    num_items: float | None = None,
    **settings: Any,
) -> Tensor:
    """The loss before transformers' Trainer divides it by the accumulation steps."""
    spread = problem.advantages[:, None].expand(problem.mask.shape)
    batch = SimpleNamespace(
        completion_mask=problem.mask.bool(),
        truncated_mask=torch.zeros(len(problem.advantages), dtype=torch.bool),
        old_per_token_logps=problem.old,
        ref_per_token_logps=problem.ref,
        rollout_per_token_logps=problem.sampling if sampled else None,
        advantages=problem.token_advantages if per_token else spread,
        num_items_in_batch=problem.mask.sum() if num_items is None else torch.tensor(num_items, dtype=torch.float64),
        teacher_per_token_logps=None,
    )
    return trainer(log_probs, **settings)._compute_loss_and_metrics(None, {}, batch)[0]


def rollout_weights(problem: Problem, mode: str, threshold: float) -> Tensor:
    self = trainer((problem.logp, problem.entropy), rollout_importance_sampling_mode=mode)
    self.rollout_importance_sampling_threshold = threshold
    return self._get_rollout_is_correction(problem.old, problem.sampling, problem.mask.bool())[1]


def kept_off_policy(problem: Problem, threshold: float) -> Tensor:
    """Which responses `off_policy_sequence_mask_delta` keeps: [B] bool."""
    self = trainer((problem.logp, problem.entropy), off_policy_sequence_mask_delta=threshold)
    return self._compute_off_policy_sequence_mask(
        problem.logp, problem.sampling, problem.mask.bool(), problem.advantages
    )


def advantages(rewards: Tensor, group_size: int, scale_rewards: str) -> Tensor:
    one = torch.ones(1, dtype=rewards.dtype)
    return _advantages(rewards[:, None], one, group_size, scale_rewards=scale_rewards)[0]
