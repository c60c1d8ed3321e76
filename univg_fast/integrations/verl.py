"""verl 0.9: its policy losses, its fused head for log-probabilities and entropy, and the difficulty weight.

The losses keep verl's names, keys and metrics; `actor.policy_loss.loss_mode=univg` is the rest of the loss table. The
head is the one that `model.use_fused_kernels=True` turns on in every model of verl that has it, Qwen-VL among them.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from univg_kernels import GrpoConfig, GrpoOutput, linear_logprob
from univg_kernels.config import AGGREGATION
from univg_kernels.conventions import check_dual_clip

from .padded import clip_shares, masked_mean, padded_loss
from .patching import Patch, all_or_nothing
from .verl_phi import Weights, replace_worker
from .versions import require, require_signature

TESTED = ("0.9",)
# verl's name of a policy loss -> ours
MODES: dict[str, dict[str, Any]] = {
    "vanilla": {"loss_type": "grpo"},
    "gspo": {"loss_type": "grpo", "importance_sampling_level": "sequence_token"},
    "sapo": {"loss_type": "sapo"},
    "cispo": {"loss_type": "cispo"},
    "gpg": {"loss_type": "reinforce"},
    "geo_mean": {"loss_type": "gmpo"},
}
UNIVG = "univg"
# What verl has a key for is set there and nowhere else.
KEYS = {
    "epsilon_low": "actor.clip_ratio_low",
    "epsilon_high": "actor.clip_ratio_high",
    "delta": "actor.clip_ratio_c",
    "sapo_temperature_pos": "actor.tau_pos",
    "sapo_temperature_neg": "actor.tau_neg",
    "loss_aggregation": "actor.loss_agg_mode",
    "max_completion_length": "actor.loss_scale_factor",
    "beta": "actor.use_kl_loss",
    "entropy_coef": "actor.entropy_coeff",
    "temperature": "rollout.temperature",
    "importance_sampling_mode": "algorithm.rollout_correction",
    "scale_rewards": "algorithm.norm_adv_by_std_in_grpo",
}
# What of the loss verl has no key for, and φ's formula.
SETTINGS = (
    "loss_type",
    "importance_sampling_level",
    "log_ratio_min",
    "log_ratio_max",
    "cispo_two_sided",
    "vespo_k_pos",
    "vespo_lambda_pos",
    "vespo_k_neg",
    "vespo_lambda_neg",
    "off_policy_mask_threshold",
    "difficulty",
    "difficulty_power",
    "normalize_difficulty",
)
_OTHER_MEANS = ("bnpo", "dr_grpo", "dapo", "luspo")  # of the tokens of "grpo": which mean is verl's to say
# What verl's losses have in common, where our defaults are others.
_VERL = {"count_empty_responses": False, "log_ratio_min": -20.0, "log_ratio_max": 20.0, "cispo_two_sided": True}
_LOSS = ("old_log_prob", "log_prob", "advantages", "response_mask", "loss_agg_mode", "config", "rollout_is_weights")
_HEAD = ("hidden_states", "vocab_weights", "input_ids", "temperature")
_TRITON_HEAD = ("hidden", "weight", "labels", "temperature", "reduction", "dist_process_group")


def patch(*, phi: str | None = None, **settings: Any) -> Patch:
    """Drop-in for verl, once in each process that trains, before its workers are made.

    phi: name of the metric, among those that the reward function returns beside the score, whose value is a
        completion's IoU. The policy term of a completion is multiplied by φ of the mean over its prompt's completions,
        on all ranks; φ's mean is logged as actor/difficulty_weight.
    settings: those of `GrpoConfig` in SETTINGS: difficulty, difficulty_power and normalize_difficulty for φ;
        loss_type and the rest for `actor.policy_loss.loss_mode=univg`.
    Returns: a Patch. verl's losses that MODES does not name, and what its bypass_mode calls, stay as they are. Its
        `restore()` reaches verl's modules, not a worker that has been handed our loss or a module that has imported
        a name of it before: it is for tests, and in training the patch stays.
    Raises: ValueError for another verl and for settings that cannot be; with phi, in training, for completions without
        that metric and for losses that have no φ.
    """
    require("verl", TESTED)
    base = _base(settings)
    from verl.trainer.ppo import core_algos
    from verl.utils.experimental.torch_functional import FusedLinearForPPO
    from verl.utils.kernel import linear_cross_entropy as kernel

    for mode in MODES:
        require_signature(core_algos.get_policy_loss_fn(mode), _LOSS)
    require_signature(FusedLinearForPPO.forward, _HEAD)
    require_signature(kernel.LinearCrossEntropy.forward, _TRITON_HEAD)
    weights = None if phi is None else Weights(phi, base)
    losses = {mode: functools.partial(_policy_loss, mode, base, weights) for mode in (*MODES, UNIVG)}
    with all_or_nothing() as done:
        done.replace(core_algos, "POLICY_LOSS_REGISTRY", core_algos.POLICY_LOSS_REGISTRY | losses)
        done.replace(FusedLinearForPPO, "forward", _fused_linear)
        done.replace(kernel, "linear_cross_entropy", _linear_cross_entropy)
        if weights is not None:
            replace_worker(done, weights, frozenset(losses))
    return done


def _base(settings: dict[str, Any]) -> GrpoConfig:
    """The loss of "univg", before verl's own keys are filled in."""
    if taken := [f"{name} by {KEYS[name]}" for name in settings if name in KEYS]:
        raise ValueError(f"verl.patch: set {', '.join(taken)} in verl's configuration, not here")
    if unknown := sorted(settings.keys() - set(SETTINGS)):
        raise ValueError(
            f"verl.patch: {', '.join(unknown)} is no setting that verl's policy losses would see; there are "
            f"{', '.join(SETTINGS)}"
        )
    if (name := settings.get("loss_type")) in _OTHER_MEANS:
        raise ValueError(
            f"verl.patch: loss_type={name!r} is 'grpo' with another mean over tokens, which verl has a key for; leave "
            f"loss_type out here, and set actor.loss_agg_mode={AGGREGATION[name]}"
        )
    return GrpoConfig(**{**_VERL, "max_completion_length": 1, **settings, "beta": 0.0})


# ------------------------------------------------------------------------------------------------ losses


def _policy_loss(
    mode: str,
    base: GrpoConfig,
    weights: Weights | None,
    old_log_prob: Tensor,
    log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    loss_agg_mode: str = "token-mean",
    config: Any = None,
    rollout_is_weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, Any]]:
    """A policy loss of verl's registry: [B, L] each -> (scalar, metrics). config: verl's ActorConfig."""
    if mode == "sapo":
        loss_agg_mode = "seq-mean-token-mean"  # verl has no other there, and for geo_mean a mean over all responses
    info = config.global_batch_info
    ours = _config(mode, base, config, loss_agg_mode, info.get("loss_scale_factor") or log_prob.shape[1])
    phi = None if weights is None else weights.now()
    out = padded_loss(
        log_prob,
        old_log_prob,
        advantages,
        response_mask,
        ours,
        denominator=None if mode == "geo_mean" else _denominator(loss_agg_mode, info),
        phi=phi,
        importance=rollout_is_weights,
    )
    metrics = _metrics(mode, ours, out, log_prob, old_log_prob, advantages, response_mask)
    if phi is not None:
        real = response_mask.bool().any(-1)  # verl fills batches up
        metrics["actor/difficulty_weight"] = torch.where(real.any(), masked_mean(phi, real), phi.mean())
    values = torch.stack([value.float() for value in metrics.values()]).tolist() if metrics else []
    return out.loss.clone(), dict(zip(metrics, values, strict=True))  # verl adds entropy and KL in place


def _config(mode: str, base: GrpoConfig, actor: Any, aggregation: str, length: int) -> GrpoConfig:
    low, high = (getattr(actor, f"clip_ratio_{side}") for side in ("low", "high"))
    given: dict[str, Any] = {
        "epsilon_low": actor.clip_ratio if low is None else low,
        "epsilon_high": actor.clip_ratio if high is None else high,
        "max_completion_length": length,
    }
    if mode in ("sapo", UNIVG):  # verl's distillation has vanilla, and a config without these
        given |= {"sapo_temperature_pos": actor.tau_pos, "sapo_temperature_neg": actor.tau_neg}
    if mode == "vanilla" or (mode == UNIVG and base.loss_type == "grpo"):
        given["delta"] = actor.get("clip_ratio_c", 3.0)
        check_dual_clip("verl: actor.clip_ratio_c", given["delta"], given["epsilon_high"])
    if mode not in ("sapo", "geo_mean"):
        given["loss_aggregation"] = "token-mean" if aggregation == "token-sum" else aggregation
    return replace(base, **given) if mode == UNIVG else GrpoConfig.like("verl", **MODES[mode], **given)


def _denominator(aggregation: str, info: dict[str, Any]) -> float | None:
    """verl's normaliser of the whole batch over all ranks; None: this call's own."""
    ranks = info.get("dp_size", 1)
    if aggregation == "token-sum":
        return 1 / ranks
    name = "batch_num_tokens" if aggregation == "token-mean" else "global_batch_size"
    if info.get(name) is not None:
        return info[name] / ranks
    if ranks > 1:
        raise ValueError(f"verl: global_batch_info must have {name} for {aggregation} on {ranks} ranks, got None")
    return None


@torch.no_grad()
def _metrics(
    mode: str, config: GrpoConfig, out: GrpoOutput, log_prob: Tensor, old: Tensor, advantages: Tensor, mask: Tensor
) -> dict[str, Tensor]:
    """What verl logs of this loss, scalars on the device."""
    if mode == "gpg":
        return {}
    difference = log_prob - old
    if mode not in ("gspo", "geo_mean"):
        difference = difference.clamp(-20.0, 20.0)
    ratio = difference.exp()
    low, high = config.clip_bounds
    outside = (ratio < low) | (ratio > high)
    clipped, lower = clip_shares(out, ratio, advantages, mask, config.delta)
    if mode == "cispo":
        clipped = masked_mean(outside.float(), mask)
    elif mode == "geo_mean":
        clipped, lower = (masked_mean((outside & side).float(), mask) for side in (advantages > 0, advantages < 0))
    return {
        "actor/pg_clipfrac": clipped,
        "actor/ppo_kl": masked_mean(-difference, mask),
        "actor/pg_clipfrac_lower": lower,
    }


# ------------------------------------------------------------------------------------------------ head


def _fused_linear(
    self: Any, hidden_states: Tensor, vocab_weights: Tensor, input_ids: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """`FusedLinearForPPO.forward`: ([*ids] log-probabilities, [*ids] entropies, nats), fp32."""
    flat = hidden_states.reshape(-1, hidden_states.shape[-1])
    scored = linear_logprob(flat, vocab_weights, input_ids.reshape(-1), temperature=float(temperature))
    return scored[0].view(input_ids.shape), scored[1].view(input_ids.shape)


def _linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    temperature: float = 1.0,
    reduction: str = "none",
    dist_process_group: Any = None,
) -> tuple[Tensor, Tensor]:
    """The op of verl's Triton backend: [N] log-probabilities and [N] entropies of flattened tokens."""
    if reduction != "none":
        raise ValueError(f"linear_cross_entropy: reduction must be 'none' with the drop-in, got {reduction!r}")
    if dist_process_group is not None and torch.distributed.get_world_size(dist_process_group) > 1:
        raise ValueError(
            "linear_cross_entropy: the drop-in has no vocabulary split over ranks, got a group of "
            f"{torch.distributed.get_world_size(dist_process_group)}; train with tensor_model_parallel_size=1, or "
            "without the drop-in"
        )
    return _fused_linear(None, hidden, weight, labels.reshape(-1), temperature)
