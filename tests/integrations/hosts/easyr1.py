"""A minimal EasyR1 in our own words: it is a fork of verl under verl's name, and no package that could be installed.

What is EasyR1's: names and arguments of `compute_policy_loss`, `DataParallelPPOActor`, `compute_advantage` and
`reduce_metrics`, the arithmetic of losses, KL and means, what a micro-batch holds, the order of a training step, and
the metrics. This one module stands for its verl.workers.actor.dp_actor and verl.trainer.ray_trainer; there is no Ray
and no FSDP.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@dataclass
class ActorConfig:
    loss_type: str = "default"
    loss_avg_mode: str = "token"
    clip_ratio_low: float = 0.2
    clip_ratio_high: float = 0.3
    clip_ratio_dual: float = 3.0
    tau_positive: float = 1.0
    tau_negative: float = 1.05
    use_kl_loss: bool = True
    kl_coef: float = 0.01
    padding_free: bool = True
    ulysses_size: int = 1
    global_batch_size_per_device: int = 4
    micro_batch_size_per_device_for_update: int = 2


def masked_mean(values: Tensor, mask: Tensor, dim: int | None = None, eps: float = 1e-8) -> Tensor:
    return (values * mask).sum(dim) / (mask.sum(dim) + eps)


def average_loss(values: Tensor, mask: Tensor, mode: str) -> Tensor:
    return masked_mean(values, mask) if mode == "token" else masked_mean(values, mask, -1).mean()


def compute_policy_loss(
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
    **kwargs: Any,
) -> tuple[Tensor, dict[str, float]]:
    difference = log_probs - old_log_probs
    log_ratio = difference
    if loss_type in ("gspo", "gspo_token"):
        mean = masked_mean(difference, response_mask, -1)[:, None]
        log_ratio = mean * response_mask if loss_type == "gspo" else mean.detach() + log_probs - log_probs.detach()
    ratio = log_ratio.clamp(-20.0, 20.0).exp()
    clipped = log_ratio.clamp(np.log(1 - clip_ratio_low), np.log(1 + clip_ratio_high)).exp()
    found = {"ppo_kl": -difference, "entropy_loss": average_loss(-log_probs, response_mask, loss_avg_mode)}
    if loss_type == "cispo":
        loss = -advantages * log_probs * clipped.detach()
    elif loss_type == "sapo":
        positive = (advantages >= 0).to(advantages)
        tau = tau_positive * positive + tau_negative * (1 - positive)
        loss = -advantages * 4 / tau * torch.sigmoid(tau * (ratio - 1))
    else:
        higher = torch.max(-advantages * ratio, -advantages * clipped)
        dual = -advantages * clip_ratio_dual
        loss = torch.where(advantages < 0, torch.min(higher, dual), higher)
        found["pg_clipfrac_higher"] = (-advantages * ratio < -advantages * clipped).float()
        found["pg_clipfrac_lower"] = (higher > dual).float() * (advantages < 0).float()
    metrics = {name: masked_mean(value, response_mask).detach().item() for name, value in found.items()}
    return average_loss(loss, response_mask, loss_avg_mode), metrics


def compute_kl(log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    """low_var_kl"""
    kl = (ref_log_probs - log_probs).clamp(-20.0, 20.0)
    return (kl.exp() - kl - 1).clamp(-10.0, 10.0)


class DataParallelPPOActor:
    def __init__(self, config: ActorConfig, actor_module: nn.Module, actor_optimizer: Any = None) -> None:
        self.config, self.actor_module, self.actor_optimizer, self.world_size = config, actor_module, actor_optimizer, 1

    def _forward_micro_batch(self, micro_batch: dict[str, Any], temperature: float) -> Tensor:
        ids, mask = micro_batch["input_ids"], micro_batch["attention_mask"].bool()
        length, positions = micro_batch["responses"].shape[-1], micro_batch["position_ids"]
        if positions.dim() == 3:
            positions = positions.transpose(0, 1)
        images = defaultdict(list)
        for sample in micro_batch.get("multi_modal_inputs", ()):
            for name, value in sample.items():
                images[name].append(value)
        given = {name: torch.cat(values) for name, values in images.items()} | {"use_cache": False}
        if not self.config.padding_free:
            attention = micro_batch["attention_mask"]
            out = self.actor_module(input_ids=ids, attention_mask=attention, position_ids=positions, **given)
            logits = out.logits.div_(temperature)[:, -length - 1 : -1]
            return logits.log_softmax(-1).gather(-1, micro_batch["responses"][..., None])[..., 0]
        flat = positions[mask][None] if positions.dim() == 2 else positions[:, mask][:, None]
        out = self.actor_module(input_ids=ids[mask][None], attention_mask=None, position_ids=flat, **given)
        logits = out.logits.squeeze(0).div_(temperature)
        scored = logits.log_softmax(-1).gather(-1, ids[mask].roll(-1)[:, None])[:, 0]
        return logits.new_zeros(ids.shape).masked_scatter(mask, scored)[:, -length - 1 : -1]

    @torch.no_grad()
    def compute_log_prob(self, data: Any) -> Tensor:
        self.actor_module.eval()
        parts = split(data, self.config.micro_batch_size_per_device_for_update)
        return torch.cat([self._forward_micro_batch(part, data.meta_info["temperature"]) for part in parts])

    def update_policy(self, data: Any) -> dict[str, list[float]]:
        c, metrics = self.config, defaultdict(list)
        self.actor_module.train()
        for mini in split(data, c.global_batch_size_per_device):
            total = mini["response_mask"].sum()
            self.actor_optimizer.zero_grad()
            for micro in split_fields(mini, c.micro_batch_size_per_device_for_update):
                mask = micro["response_mask"]
                log_probs = self._forward_micro_batch(micro, temperature=data.meta_info["temperature"])
                pg_loss, found = compute_policy_loss(
                    old_log_probs=micro["old_log_probs"],
                    log_probs=log_probs,
                    advantages=micro["advantages"],
                    response_mask=mask,
                    clip_ratio_low=c.clip_ratio_low,
                    clip_ratio_high=c.clip_ratio_high,
                    clip_ratio_dual=c.clip_ratio_dual,
                    tau_positive=c.tau_positive,
                    tau_negative=c.tau_negative,
                    loss_type=c.loss_type,
                    loss_avg_mode=c.loss_avg_mode,
                )
                loss = pg_loss
                if c.use_kl_loss:
                    kl = average_loss(compute_kl(log_probs, micro["ref_log_probs"]), mask, c.loss_avg_mode)
                    loss = pg_loss + c.kl_coef * kl
                    metrics["actor/kl_loss"].append(kl.item())
                (loss * mask.sum() * self.world_size / total).backward()
                for name, value in (found | {"pg_loss": pg_loss.item()}).items():
                    metrics[f"actor/{name}"].append(value)
            norm = nn.utils.clip_grad_norm_(self.actor_module.parameters(), float("inf"))
            metrics["actor/grad_norm"].append(norm.item())
            self.actor_optimizer.step()
        return dict(metrics)


def split(data: Any, size: int) -> list[dict[str, Any]]:
    return split_fields(data.batch | {k: list(v) for k, v in data.non_tensor_batch.items()}, size)


def split_fields(fields: dict[str, Any], size: int) -> list[dict[str, Any]]:
    count = len(fields["input_ids"])
    return [{name: value[i : i + size] for name, value in fields.items()} for i in range(0, count, size)]


def data_proto(batch: dict[str, Tensor], non_tensor_batch: dict[str, Any], temperature: float) -> Any:
    """Stands for a DataProto: three dicts."""
    return SimpleNamespace(batch=batch, non_tensor_batch=non_tensor_batch, meta_info={"temperature": temperature})


def reduce_metrics(metrics: dict[str, list[Any]]) -> dict[str, Any]:
    return {name: np.mean(values) for name, values in metrics.items()}


def compute_advantage(data: Any, adv_estimator: str, gamma: float = 1.0, lam: float = 1.0) -> Any:
    """GRPO: of the sum of a response's token rewards within its prompt."""
    scores, index = data.batch["token_level_rewards"].sum(-1), data.non_tensor_batch["uid"]
    groups: dict[Any, list[float]] = defaultdict(list)
    for uid, score in zip(index, scores.tolist(), strict=True):
        groups[uid].append(score)
    of = [torch.tensor(groups[uid]) for uid in index]
    values = torch.stack([(s - g.mean()) / (g.std() + 1e-6) for s, g in zip(scores, of, strict=True)])
    data.batch["advantages"] = values[:, None] * data.batch["response_mask"]
    return data


def apply_kl_penalty(data: Any, kl_ctrl: Any, kl_penalty: str = "kl") -> tuple[Any, dict[str, float]]:
    """Without use_kl_loss: the reward of a token is its score less a part of its KL."""
    kl = compute_kl(data.batch["old_log_probs"], data.batch["ref_log_probs"])
    data.batch["token_level_rewards"] = data.batch["token_level_scores"] - kl_ctrl.kl_coef * kl
    return data, {"critic/kl": kl.mean().item()}


def training_step(actor: DataParallelPPOActor, data: Any, scores: dict[str, list[float]]) -> dict[str, Any]:
    """What the trainer does between rollout and the next one. scores: of the reward function, by name."""
    rewards = torch.zeros_like(data.batch["response_mask"], dtype=torch.float32)
    rewards[:, 0] = torch.tensor(scores["overall"])
    data.batch["token_level_rewards"] = rewards
    metrics = {f"reward/{name}": value for name, value in reduce_metrics(scores).items()}
    data = compute_advantage(data, adv_estimator="grpo", gamma=1.0, lam=1.0)
    return metrics | actor.update_policy(data)


def validate(batches: list[dict[str, list[float]]]) -> dict[str, float]:
    """The trainer's `_validate` after generation: scores of all batches' completions, and no log-probabilities."""
    found: dict[str, list[float]] = defaultdict(list)
    for scores in batches:
        for name, values in scores.items():
            found[name].extend(values)
    return {f"val/{name}_reward": value for name, value in reduce_metrics(found).items()}


class RayPPOTrainer:
    """The trainer as it is made; its steps are `training_step` here."""

    def __init__(self, config: Any) -> None:
        self.config = config
