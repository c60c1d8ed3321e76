"""TRL 1.16.0's own loss: `GRPOTrainer._compute_loss` and what stands around it, on given log-probabilities."""

from __future__ import annotations

import math
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from .problem import Problem
from .source import dataclass_defaults, functions, methods, need, passage

need("trl", "1.16.0")
_GRPO = "trl/trainer/grpo_trainer.py"
_SMALL = functions("trl/trainer/utils.py", "nanmin", "nanmax", "nanstd")
_HELPERS = ("_compute_loss", "get_off_policy_mask", "get_gamma_weights", "get_high_entropy_mask")
_Grpo = methods(_GRPO, "GRPOTrainer", *_HELPERS, math=math, **_SMALL)
_Gmpo = methods("trl/experimental/gmpo/gmpo_trainer.py", "GMPOTrainer", "_compute_loss", **_SMALL)
_importance_ratio = passage(
    _GRPO,
    "GRPOTrainer",
    "_generate_and_score_completions",
    "per_token_logps_diff = (",
    "if self.vllm_importance_sampling_mode in",
    takes="self, old_per_token_logps, sampling_per_token_logps, mask",
    gives="vllm_importance_sampling_ratio",
    math=math,
)
_advantages = passage(
    _GRPO,
    "GRPOTrainer",
    "_generate_and_score_completions",
    "unscorable_mask = ",
    "advantages = torch.nan_to_num",
    takes="self, rewards_per_func, num_generations, device",
    gives="advantages",
    **_SMALL,
)


def _one_process() -> SimpleNamespace:
    return SimpleNamespace(
        num_processes=1,
        sync_gradients=True,
        gather=lambda x: x,
        gather_for_metrics=lambda x: x,
        reduce=lambda x, reduction: x,
        pad_across_processes=lambda x, dim, pad_index: x,
    )


def trainer(owner: type, log_probs: tuple[Tensor, Tensor], **settings: Any) -> Any:
    """What the methods read of `self`: TRL's arguments at TRL's defaults, and the model's output."""
    args = {
        "delta": None,
        "use_bias_correction_kl": True,
        "sapo_temperature_pos": 1.0,
        "sapo_temperature_neg": 1.05,
        "vespo_k_pos": 2.0,
        "vespo_lambda_pos": 3.0,
        "vespo_k_neg": 3.0,
        "vespo_lambda_neg": 2.0,
        "steps_per_generation": 1,
    }
    own = {
        "loss_type": "dapo",
        "importance_sampling_level": "token",
        "epsilon_low": 0.2,
        "epsilon_high": 0.2,
        "beta": 0.0,
        "top_entropy_quantile": 1.0,
        "off_policy_mask_threshold": None,
        "entropy_coef": 0.0,
        "use_adaptive_entropy": False,
        "use_vllm": False,
        "vllm_importance_sampling_correction": True,
        "vllm_importance_sampling_mode": "sequence_mask",
        "vllm_importance_sampling_clip_max": 3.0,
        "vllm_importance_sampling_clip_min": None,
        "max_completion_length": 256,
        "current_gradient_accumulation_steps": 1,
        "aux_loss_enabled": False,
    }
    unknown = settings.keys() - args.keys() - own.keys()
    assert not unknown, unknown
    self = owner()
    self.__dict__.update(own | {k: v for k, v in settings.items() if k in own})
    self.args = SimpleNamespace(**args | {k: v for k, v in settings.items() if k in args})
    self._entropy_bonus_enabled = self.entropy_coef != 0.0
    self.model = SimpleNamespace(training=True)
    self.accelerator = _one_process()
    self._metrics = {}
    self._get_per_token_logps_and_entropies = lambda *_, **__: (*log_probs, None)
    return self


def loss(
    problem: Problem,
    log_probs: tuple[Tensor, Tensor],
    *,
    on_policy: bool = False,
    sampled: bool = False,
    per_token: bool = False,
    num_items: float | None = None,
    logged: dict[str, list[float]] | None = None,
    **settings: Any,
) -> Tensor:
    """The loss that TRL returns; what it logs goes to `logged`.

    sampled: the sampler's log-probabilities are there; whether they correct the loss, say `use_vllm` and the other
    settings. on_policy: TRL has no old log-probabilities and takes its own.
    """
    owner = _Gmpo if settings.get("loss_type") == "gmpo" else _Grpo
    if owner is _Gmpo:
        owner = type("GMPOTrainer", (_Gmpo, _Grpo), {})
    self = trainer(owner, log_probs, **settings)
    self._metrics["train"] = defaultdict(list) if logged is None else logged
    ids = torch.zeros_like(problem.mask)
    count = problem.mask.sum() if num_items is None else torch.tensor(num_items, dtype=torch.float64)
    # The rows that TRL was given as completion, and those of them that a tool wrote.
    inputs = {
        "prompt_ids": ids[:, :1],
        "prompt_mask": ids[:, :1],
        "completion_ids": ids,
        "completion_mask": problem.present.long(),
        "tool_mask": problem.mask,
        "advantages": problem.token_advantages if per_token else problem.advantages,
        "ref_per_token_logps": problem.ref,
        "num_items_in_batch": count,
    }
    if not on_policy:
        inputs["old_per_token_logps"] = problem.old
    if sampled:
        inputs["sampling_per_token_logps"] = problem.sampling
    if self.use_vllm and self.vllm_importance_sampling_correction:
        inputs["importance_sampling_ratio"] = _importance_ratio(self, problem.old, problem.sampling, problem.mask)
    return self._compute_loss(None, inputs)


def advantages(rewards: Tensor, group_size: int, scale_rewards: str) -> Tensor:
    self = SimpleNamespace(
        multi_objective_aggregation="sum_then_normalize",
        scale_rewards=scale_rewards,
        reward_weights=torch.ones(1, dtype=rewards.dtype),
    )
    return _advantages(self, rewards[:, None], group_size, rewards.device)


def defaults() -> dict[str, Any]:
    """The defaults of `GRPOConfig`, as far as they are written out as values."""
    return dataclass_defaults("trl/trainer/grpo_config.py", "GRPOConfig")
