"""ms-swift: `GRPOTrainer` scores its local forward pass without logits, and weighs groups by φ.

ms-swift makes the logits of each batch's longest completion, divides them by the temperature, and reads them for
log-probabilities and again for entropies. The loss (`_compute_loss_and_metrics`, of [B, T]) and its metrics stay its
own, with what Liger's loss forbids there: delta, padding_free, entropies and their mask, the off-policy mask.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from univg_kernels import GrpoConfig

from .heads import head_of, scoring, spread
from .patching import Patch, all_or_nothing
from .phi import of_means, refuse_kl_in_reward, refuse_negative
from .versions import require, require_signature

TESTED = ("4.6",)
_SCORE = ("model", "model_inputs", "logits_to_keep", "input_ids", "compute_entropy")
_ADVANTAGES = ("samples", "rewards_per_func", "batch_encoded_inputs")


def patch(trainer: Any, *, phi: str | None = None, difficulty: str = "exp", difficulty_power: float = 1.0) -> Patch:
    """Drop-in for a `swift.rlhf_trainers.GRPOTrainer`, before `train()`.

    Each `_get_logps_via_local_forward`, of the policy and of the reference, runs `univg_kernels.linear_logprob` on the
    rows of the last logits_to_keep tokens that are not padding; those have log-probability and entropy 0.
    phi: name of the reward function whose value is a completion's IoU. The advantages of each prompt's num_generations
        completions are multiplied by φ of its mean (`univg_kernels.difficulty_weight`), logged as difficulty_weight.
        None as a value is left out of the mean; a prompt with nothing else has φ = 1.
    Returns: a Patch; restore it after the backward pass of what it has scored.
    Raises: ValueError for another version, use_liger_kernel, sequence parallelism, with phi KL in the reward and (in
        training) samples that are parts of trajectories, and settings that cannot be.
    """
    require("ms-swift", TESTED)
    require_signature(trainer._get_logps_via_local_forward, _SCORE)
    if trainer.use_liger_loss:
        raise ValueError(
            "use_liger_kernel=True makes the loss by Liger, past this drop-in; set use_liger_kernel to False"
        )
    if trainer.template.sequence_parallel_size > 1:
        raise ValueError(
            f"sequence_parallel_size must be 1, got {trainer.template.sequence_parallel_size}: its ranks each hold a "
            "part of a row's tokens, which this drop-in does not follow"
        )
    head_of(trainer.model)

    def score(
        model: Any, model_inputs: dict[str, Any], logits_to_keep: int, input_ids: Tensor, compute_entropy: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        return _score(trainer, model, model_inputs, logits_to_keep, input_ids, compute_entropy)

    with all_or_nothing() as done:
        done.replace(trainer, "_get_logps_via_local_forward", score)
        if phi is not None:
            config = GrpoConfig(difficulty=difficulty, difficulty_power=difficulty_power)
            _replace_advantages(done, trainer, phi, config)
    return done


def _score(
    trainer: Any, model: Any, inputs: dict[str, Any], keep: int, input_ids: Tensor, compute_entropy: bool
) -> tuple[Tensor, Tensor | None]:
    """([B, keep], [B, keep] or None); with padding_free B is 1, a row of all sequences."""
    wanted = torch.zeros_like(input_ids, dtype=torch.bool)
    wanted[:, -keep - 1 : -1] = True
    mask = inputs.get("attention_mask")
    if isinstance(mask, Tensor) and mask.shape == input_ids.shape and not trainer.template.padding_free:
        wanted[:, :-1] &= mask[:, 1:].bool()
    rows = wanted.flatten().nonzero()[:, 0]
    if "use_cache" in trainer.model_kwarg_keys:
        inputs["use_cache"] = False
    with scoring(model, rows, input_ids.flatten()[rows + 1], trainer.temperature):
        scored = model(**inputs).logits[0]
    logp, entropy = (spread(values, rows, input_ids.shape)[:, -keep - 1 : -1] for values in scored.unbind(-1))
    return logp, entropy if compute_entropy else None


def _replace_advantages(done: Patch, trainer: Any, phi: str, config: GrpoConfig) -> None:
    require_signature(trainer._compute_advantages, _ADVANTAGES)
    if phi not in trainer.reward_func_names:
        names = ", ".join(trainer.reward_func_names)
        raise ValueError(f"phi must name a reward function, got {phi!r}; the trainer has {names}")
    refuse_negative(config.difficulty)
    if trainer.loss_type == "real":
        raise ValueError("phi multiplies advantages, which loss_type 'real' is not in proportion to; use another one")
    if trainer.kl_in_reward and trainer.beta != 0:
        refuse_kl_in_reward(f"kl_in_reward=True with beta={trainer.beta}", "set kl_in_reward to False, or beta to 0")
    column, theirs = trainer.reward_func_names.index(phi), trainer._compute_advantages

    def weighted(samples: Any, rewards_per_func: Tensor, batch_encoded_inputs: Any) -> Tensor:
        if trainer.dynamic_num_samples:  # of this rollout: a scheduler's answer decides
            raise ValueError(
                "phi needs num_generations completions of each prompt, got a rollout whose multi-turn scheduler cut "
                "trajectories into several samples (dynamic_num_samples); use a scheduler that returns one sample per "
                "request, or leave phi out"
            )
        advantages: Tensor = theirs(samples, rewards_per_func, batch_encoded_inputs)
        training = trainer.model.training
        size = trainer.num_generations if training else trainer.num_generations_eval
        weight = of_means(rewards_per_func[:, column].float().view(-1, size).nanmean(-1), config)
        trainer._metrics["train" if training else "eval"]["difficulty_weight"].append(weight.mean().item())
        return advantages * weight.repeat_interleave(size).to(advantages)

    done.replace(trainer, "_compute_advantages", weighted)
