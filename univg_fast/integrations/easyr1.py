"""EasyR1: log-probabilities of responses only, made with the head; its policy losses; the difficulty weight.

Its actor makes logits of every position, prompts and images included, and then reads those of the response. EasyR1 is a
fork of verl under verl's name, on no registry: its tests stand on a minimal host in our own words.
"""

from __future__ import annotations

import functools
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from univg_kernels import GrpoConfig
from univg_kernels.conventions import check_dual_clip

from .heads import scoring, spread
from .padded import clip_shares, masked_mean, padded_loss
from .patching import Patch, all_or_nothing
from .phi import of_prompts, refuse_kl_in_reward, refuse_negative
from .versions import require, require_signature

TESTED = ("0.3",)
# EasyR1's loss_type -> ours
LOSSES: dict[str, dict[str, Any]] = {
    "default": {"loss_type": "grpo"},
    "gspo": {"loss_type": "grpo", "importance_sampling_level": "sequence"},
    "gspo_token": {"loss_type": "grpo", "importance_sampling_level": "sequence_token"},
    "cispo": {"loss_type": "cispo", "cispo_two_sided": True},
    "sapo": {"loss_type": "sapo"},
}
AGGREGATIONS = {"token": "token-mean", "seq": "seq-mean-token-mean"}
_CLIP = ("clip_ratio_low", "clip_ratio_high", "clip_ratio_dual", "tau_positive", "tau_negative")
_LOSS = ("old_log_probs", "log_probs", "advantages", "response_mask", *_CLIP, "loss_type", "loss_avg_mode")


def patch(*, phi: str | None = None, difficulty: str = "exp", difficulty_power: float = 1.0) -> Patch:
    """Drop-in for EasyR1, once in each process: that of the trainer and those of its workers.

    phi: name of the reward function's score, beside "overall", whose value is a completion's IoU. The advantages of
        each prompt's completions are multiplied by φ of its mean (`univg_kernels.difficulty_weight`), which for φ >= 0
        is to weigh the policy term; EasyR1 logs the weighted advantages.
    Returns: a Patch.
    Raises: ValueError for another verl and for settings that cannot be; with phi, where a trainer is made with
        online_filtering; in training for ulysses_size above 1 and, with phi, for completions without that score and for
        KL in the reward (use_kl_loss=False).
    """
    require("verl", TESTED)
    actor = import_module("verl.workers.actor.dp_actor")
    require_signature(actor.compute_policy_loss, _LOSS)
    require_signature(actor.DataParallelPPOActor._forward_micro_batch, ("micro_batch", "temperature"))
    refuse_negative(difficulty)
    config = GrpoConfig(difficulty=difficulty, difficulty_power=difficulty_power)  # refuses what is no variant
    with all_or_nothing() as done:
        done.replace(actor, "compute_policy_loss", policy_loss)
        done.replace(actor.DataParallelPPOActor, "_forward_micro_batch", forward_micro_batch)
        if phi is not None:
            _replace_advantages(done, phi, config)
    return done


# ------------------------------------------------------------------------------------------------ head


def forward_micro_batch(self: Any, micro_batch: dict[str, Any], temperature: float) -> Tensor:
    """Log-probabilities [B, R] fp32 of the responses; 0 for their padding, which is masked wherever it is read."""
    if getattr(self.config, "ulysses_size", 1) > 1:
        raise ValueError(
            f"EasyR1: ulysses_size must be 1 with the drop-in, got {self.config.ulysses_size}: a response's hidden "
            "states would lie on several ranks"
        )
    ids, positions = micro_batch["input_ids"], micro_batch["position_ids"]
    mask, length = micro_batch["attention_mask"].bool(), micro_batch["responses"].shape[-1]
    if positions.dim() == 3:  # [B, 4, L], of Qwen-VL
        positions = positions.transpose(0, 1)
    before = torch.zeros_like(mask)  # where a token of the response comes next
    before[:, -length - 1 : -1] = mask[:, -length:]
    before = before.flatten()
    if self.config.padding_free:
        rows = (mask.flatten().cumsum(0) - 1)[before]
        inputs = {"input_ids": ids[mask][None], "attention_mask": None, "position_ids": _packed(positions, mask)}
    else:
        rows = before.nonzero()[:, 0]
        inputs = {"input_ids": ids, "attention_mask": micro_batch["attention_mask"], "position_ids": positions}
    with scoring(self.actor_module, rows, ids.roll(-1, 1).flatten()[before], temperature):
        scored = self.actor_module(**inputs, **_images(micro_batch), use_cache=False).logits[0, :, 0]
    return spread(scored, before.nonzero()[:, 0], ids.shape)[:, -length - 1 : -1]


def _packed(positions: Tensor, mask: Tensor) -> Tensor:
    """[B, L] -> [1, N], [4, B, L] -> [4, 1, N]."""
    return positions[mask][None] if positions.dim() == 2 else positions[:, mask][:, None]


def _images(micro_batch: dict[str, Any]) -> dict[str, Tensor]:
    """One dict a sample -> one for the batch."""
    found: dict[str, list[Tensor]] = {}
    for sample in micro_batch.get("multi_modal_inputs", ()):
        for name, value in sample.items():
            found.setdefault(name, []).append(value)
    return {name: torch.cat(values) for name, values in found.items()}


# ------------------------------------------------------------------------------------------------ loss


def policy_loss(
    old_log_probs: Tensor,
    log_probs: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    clip_ratio_low: float,
    clip_ratio_high: float,
    clip_ratio_dual: float,
    tau_positive: float,
    tau_negative: float,
    loss_type: str,
    loss_avg_mode: str,
    **more: Any,
) -> tuple[Tensor, dict[str, float]]:
    """EasyR1's `compute_policy_loss`: [B, R] each -> (scalar, metrics)."""
    for name, value, choices in (("loss_type", loss_type, LOSSES), ("loss_avg_mode", loss_avg_mode, AGGREGATIONS)):
        if value not in choices:
            raise ValueError(f"EasyR1: {name} must be one of {', '.join(choices)} with the drop-in, got {value!r}")
    dual = clip_ratio_dual if LOSSES[loss_type]["loss_type"] == "grpo" else None  # cispo and sapo have none
    check_dual_clip("EasyR1: clip_ratio_dual", dual, clip_ratio_high)
    config = GrpoConfig(
        **LOSSES[loss_type],
        loss_aggregation=AGGREGATIONS[loss_avg_mode],
        epsilon_low=clip_ratio_low,
        epsilon_high=clip_ratio_high,
        delta=dual,
        log_ratio_min=-20.0,
        log_ratio_max=20.0,
        sapo_temperature_pos=tau_positive,
        sapo_temperature_neg=tau_negative,
        beta=0.0,
    )
    out = padded_loss(log_probs, old_log_probs, advantages, response_mask, config)
    with torch.no_grad():
        difference = log_probs - old_log_probs
        found = {
            "ppo_kl": masked_mean(-difference, response_mask),
            "entropy_loss": -_mean(log_probs, response_mask, loss_avg_mode),
        }
        if config.loss_type == "grpo":
            if loss_type != "default":
                difference = (_kept(difference, response_mask).sum(-1) / response_mask.sum(-1).clamp(min=1))[:, None]
            ratio = difference.clamp(-20.0, 20.0).exp()
            shares = clip_shares(out, ratio, advantages, response_mask, dual)
            found |= dict(zip(("pg_clipfrac_higher", "pg_clipfrac_lower"), shares, strict=True))
        values = torch.stack([value.float() for value in found.values()]).tolist()
    return out.loss, dict(zip(found, values, strict=True))


def _kept(values: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask.bool(), values, 0.0)


def _mean(values: Tensor, mask: Tensor, mode: str) -> Tensor:
    if mode == "token":
        return masked_mean(values, mask)
    return (_kept(values, mask).sum(-1) / mask.sum(-1).clamp(min=1)).mean()


# ------------------------------------------------------------------------------------------------ φ


def _replace_advantages(done: Patch, phi: str, config: GrpoConfig) -> None:
    """The trainer reduces each batch's scores to means right before it computes advantages: there they are caught.

    With online_filtering it does so before it balances the batch over ranks: the scores' order is another one.
    """
    trainer = import_module("verl.trainer.ray_trainer")
    init = trainer.RayPPOTrainer.__init__
    require_signature(init, ("config",))
    require_signature(trainer.compute_advantage, ("data", "adv_estimator"))
    require_signature(trainer.apply_kl_penalty, ("data", "kl_ctrl"))
    reduce, compute, penalize = trainer.reduce_metrics, trainer.compute_advantage, trainer.apply_kl_penalty
    last: list[Any] = []

    @functools.wraps(init)
    def checked(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        if config.algorithm.online_filtering:
            raise ValueError(
                f"EasyR1: phi={phi!r} needs algorithm.online_filtering=False, got True: it reduces scores to means "
                "before it drops completions and balances the rest, so whose they are is lost; set it to false, or "
                "leave phi out"
            )
        init(self, config, *args, **kwargs)

    @functools.wraps(reduce)
    def reduce_metrics(metrics: dict[str, list[Any]], *args: Any, **kwargs: Any) -> Any:
        last[:] = metrics.get(phi, [])  # a validation's, too: they are gone with the next step's
        return reduce(metrics, *args, **kwargs)

    @functools.wraps(compute)
    def compute_advantage(data: Any, *args: Any, **kwargs: Any) -> Any:
        uids = list(map(str, data.non_tensor_batch["uid"]))
        if len(last) != len(uids):
            raise ValueError(
                f"EasyR1: phi={phi!r} must be a score that the reward function returns for each of the batch's "
                f"{len(uids)} completions, got {len(last)}"
            )
        weight = of_prompts(uids, [float(value) for value in last], config)
        last.clear()
        data = compute(data, *args, **kwargs)
        advantages = data.batch["advantages"]
        data.batch["advantages"] = advantages * weight.to(advantages)[:, None]
        return data

    @functools.wraps(trainer.apply_kl_penalty)
    def apply_kl_penalty(data: Any, kl_ctrl: Any, *args: Any, **kwargs: Any) -> Any:
        if kl_ctrl.kl_coef > 0:
            refuse_kl_in_reward("algorithm.use_kl_loss=False", "set use_kl_loss or disable_kl to true, or kl_coef to 0")
        return penalize(data, kl_ctrl, *args, **kwargs)

    done.replace(trainer.RayPPOTrainer, "__init__", checked)
    done.replace(trainer, "apply_kl_penalty", apply_kl_penalty)
    done.replace(trainer, "reduce_metrics", reduce_metrics)
    done.replace(trainer, "compute_advantage", compute_advantage)
