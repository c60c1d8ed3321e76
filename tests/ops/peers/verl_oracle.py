"""verl 0.9.1's own actor loss: `ppo_loss` with its policy losses, KL penalties and aggregation."""

from __future__ import annotations

from collections import defaultdict
from enum import Enum
from types import SimpleNamespace
from typing import Any, Optional, Union

import numpy as np
import torch
from torch import Tensor

from .problem import Problem
from .source import dataclass_defaults, functions, need

need("verl", "0.9.1")
_CORE = "verl/trainer/ppo/core_algos.py"
_LOSSES = ("vanilla", "gspo", "sapo", "gpg", "geo_mean", "cispo", "reinforce")


class ActorConfig(SimpleNamespace):
    """What the losses read of verl's ActorConfig, which itself imports Ray."""

    def get(self, name: str, default: Any = None) -> Any:
        return getattr(self, name, default)


_F = SimpleNamespace(**functions("verl/utils/torch_functional.py", "masked_sum", "masked_mean"))
_core = functions(
    _CORE,
    *(f"compute_policy_loss_{name}" for name in _LOSSES),
    "agg_loss",
    "kl_penalty",
    "kl_penalty_forward",
    "compute_grpo_outcome_advantage",
    verl_F=_F,
    ActorConfig=ActorConfig,
    AlgoConfig=type("AlgoConfig", (), {}),
    defaultdict=defaultdict,
)
_metric = functions(
    "verl/utils/metric/utils.py",
    *("AggregationType", "NumericType", "Numeric", "Metric"),
    **{"Enum": Enum, "np": np, "Union": Union, "Optional": Optional, "Any": Any},
)
_ppo_loss = functions(
    "verl/workers/utils/losses.py",
    "ppo_loss",
    get_policy_loss_fn=lambda name: _core[f"compute_policy_loss_{name}"],
    no_padding_2_padding=lambda x, data: x,  # what the engine gives is padded here from the start
    **{name: _core[name] for name in ("agg_loss", "kl_penalty")},
    **{name: _metric[name] for name in ("AggregationType", "Metric")},
)["ppo_loss"]
_rollout_weights = functions(
    "verl/trainer/ppo/rollout_corr_helper.py",
    *("SAFETY_BOUND", "_parse_rollout_is_threshold", "compute_rollout_correction_weights", "compute_is_metrics"),
    verl_F=_F,
)["compute_rollout_correction_weights"]


class _Batch(dict):
    """A TensorDict whose tensors are padded already."""

    def select(self, *names: str) -> _Batch:
        return _Batch({name: self[name] for name in names})

    def to_padded_tensor(self) -> _Batch:
        return self


def defaults() -> dict[str, Any]:
    found = dataclass_defaults("verl/workers/config/actor.py", "ActorConfig")
    return {k: v for k, v in found.items() if not k.startswith("ppo_")}


def loss(
    problem: Problem,
    log_probs: tuple[Tensor, Tensor],
    *,
    loss_mode: str = "vanilla",
    rollout_is: str | None = None,
    rollout_is_threshold: str | float = 2.0,
    bypass: bool = False,
    batch_num_tokens: int | None = None,
    global_batch_size: int | None = None,
    dp_size: int = 1,
    per_token: bool = False,
    **settings: Any,
) -> Tensor:
    """The loss that verl's actor differentiates. bypass: the sampler's log-probabilities are the old ones, and
    `reinforce` is weighed by the present policy against them, as `bypass_mode` puts it together."""
    assert settings.keys() <= defaults().keys(), settings
    config = ActorConfig(**defaults() | settings, policy_loss={"loss_mode": loss_mode}, global_batch_info={})
    mask = problem.mask.bool()
    spread = problem.token_advantages if per_token else problem.advantages[:, None].expand(mask.shape)
    old = problem.sampling if bypass else problem.old
    data = _Batch(
        response_mask=problem.mask,
        old_log_probs=old,
        advantages=spread.clone(),
        ref_log_prob=problem.ref,
        dp_size=dp_size,
        batch_num_tokens=batch_num_tokens,
        global_batch_size=global_batch_size,
    )
    if rollout_is:
        policy = log_probs[0].detach() if bypass else old
        data["rollout_is_weights"], _ = _rollout_weights(
            policy - problem.sampling, mask, rollout_is, rollout_is_threshold
        )
    if loss_mode == "reinforce":
        # Not in verl's table of losses: bypass_mode calls it by these names.
        _core["compute_policy_loss_reinforce_in_bypass"] = lambda old_log_prob, **given: _core[
            "compute_policy_loss_reinforce"
        ](rollout_log_prob=old_log_prob, **given)
        config.policy_loss["loss_mode"] = "reinforce_in_bypass"
    entropy = {"entropy": log_probs[1]} if config.entropy_coeff else {}
    return _ppo_loss(config, {"log_probs": log_probs[0], **entropy}, data)[0]


def advantages(rewards: Tensor, groups: list[int], normalize: bool) -> Tensor:
    scores = rewards.clone()[:, None]
    found, _ = _core["compute_grpo_outcome_advantage"](
        scores, torch.ones_like(scores), np.array(groups), norm_adv_by_std_in_grpo=normalize
    )
    return found[:, 0]
