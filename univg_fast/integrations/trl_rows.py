"""What TRL's trainer knows of a batch, as arguments of `linear_grpo_loss`. B completions padded to T tokens, N rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from univg_kernels import GrpoConfig, RowArguments

LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo")  # of GRPOTrainer
SAME_NAME = (  # in TRL's arguments and in GrpoConfig
    "delta",
    "use_bias_correction_kl",
    "sapo_temperature_pos",
    "sapo_temperature_neg",
    "vespo_k_pos",
    "vespo_lambda_pos",
    "vespo_k_neg",
    "vespo_lambda_neg",
)


class Batch(NamedTuple):
    """One call of the host's loss. `padded`: per-token arguments [B, T] of `linear_grpo_loss`; `rows`: the others."""

    config: GrpoConfig
    present: Tensor  # [B, T] bool: tokens that the model scores, rows of the loss
    mask: Tensor  # [B, T] bool: those that count (a tool's words do not)
    padded: dict[str, Tensor]
    rows: RowArguments

    def arguments(self) -> RowArguments:
        """Everything by row; the rows are those of `present`, completion after completion."""
        flat = {name: value[self.present] for name, value in self.padded.items()}
        return {**self.rows, **flat, "mask": self.mask[self.present]}  # type: ignore[typeddict-item]

    def cu_seqlens(self) -> Tensor:
        """[B + 1] int64, on the host: a loss that is coupled over a response then costs no product more."""
        lengths = self.present.sum(1).cpu()
        return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])


def owner(trainer: Any, method: str) -> type:
    """The class that the trainer has a method from."""
    return next(cls for cls in type(trainer).__mro__ if method in vars(cls))


def refuse_own(trainer: Any, methods: Sequence[str]) -> None:
    """ValueError where a subclass has one of these methods of the loss: ours would not be called, or not know it."""
    for method in methods:
        cls = owner(trainer, method)
        if not cls.__module__.startswith("trl.") or cls.__name__ not in ("GRPOTrainer", "GMPOTrainer"):
            raise ValueError(
                f"{cls.__module__}.{cls.__qualname__} has a {method} of its own, expected GRPOTrainer's or "
                "GMPOTrainer's; train it without the drop-in, or with patch_logprobs() (trl>=1.16), which works with "
                "any loss"
            )


def is_gmpo(trainer: Any) -> bool:
    """GMPO is a trainer of its own in TRL, whose loss_type nobody reads."""
    return owner(trainer, "_compute_loss").__name__ == "GMPOTrainer"


def accumulation(trainer: Any) -> float:
    """What TRL divides a micro-batch's loss by; the trainer has it from its first step on."""
    steps = trainer.args.gradient_accumulation_steps
    return float(getattr(trainer, "current_gradient_accumulation_steps", steps)) if trainer.model.training else 1.0


def entropy_coef(trainer: Any) -> float:
    """The bonus's weight in this step; an adaptive one rests while the entropy is high enough."""
    if is_gmpo(trainer) or not trainer._entropy_bonus_enabled:
        return 0.0
    rests = trainer.use_adaptive_entropy and trainer._last_world_entropy > trainer.args.entropy_target
    return 0.0 if rests else float(trainer.entropy_coef)


def make_config(trainer: Any) -> GrpoConfig:
    """TRL's settings of this step, but for those of the logits, which the head knows."""
    settings = {
        "epsilon_low": trainer.epsilon_low,
        "epsilon_high": trainer.epsilon_high,
        "beta": trainer.beta,
        "top_entropy_quantile": trainer.top_entropy_quantile,
        "importance_sampling_mode": "none",  # TRL gives the ratio itself
    }
    if is_gmpo(trainer):
        return GrpoConfig.like("trl", loss_type="gmpo", **settings)
    settings |= {name: getattr(trainer.args, name) for name in SAME_NAME}
    return GrpoConfig.like(
        "trl",
        loss_type=trainer.loss_type,
        importance_sampling_level=trainer.importance_sampling_level,
        max_completion_length=trainer.max_completion_length,
        off_policy_mask_threshold=trainer.off_policy_mask_threshold,
        entropy_coef=entropy_coef(trainer) / accumulation(trainer),
        **settings,
    )


def denominator(trainer: Any, config: GrpoConfig, inputs: dict[str, Any], mask: Tensor) -> float | Tensor:
    """What TRL divides the sum of its loss by: completions, or tokens of this call or of the whole generation batch."""
    if config.loss_type in ("cispo", "dapo", "vespo"):
        tokens = inputs["num_items_in_batch"].clamp(min=1.0) / trainer.accelerator.num_processes
        return tokens * accumulation(trainer) / (trainer.args.steps_per_generation if trainer.model.training else 1)
    if config.loss_type == "bnpo":
        return mask.sum().clamp(min=1) * accumulation(trainer)
    return len(mask) * accumulation(trainer)


def find_phi(inputs: dict[str, Any], weighed: bool) -> Tensor | None:
    """φ [B] of a batch, which it got when it was generated; ValueError where it was asked for and is not there."""
    phi = inputs.get("phi")
    if weighed and phi is None:
        raise ValueError(
            "TRL's loss got a batch without 'phi', expected φ of each completion; it was generated before patch(phi=…) "
            "(then set trainer._buffered_inputs = None), or something between generation and loss drops what it does "
            f"not know: the batch has {', '.join(inputs)}"
        )
    return phi


def loss_of_empty(batch: Batch) -> Tensor:
    """What TRL's GMPO adds for completions without a token that counts: -A of each, which has no gradient."""
    advantages, phi, denominator = batch.rows["advantages"], batch.rows.get("phi"), batch.rows["denominator"]
    assert advantages is not None and denominator is not None
    each = advantages if phi is None else advantages * phi
    return -(each * ~batch.mask.any(1)).sum() / denominator


def make_batch(trainer: Any, inputs: dict[str, Any], phi: Tensor | None) -> Batch:
    """The arguments of one `_compute_loss(model, inputs)`."""
    config = make_config(trainer)
    present = inputs["completion_mask"].bool()
    mask = present & inputs["tool_mask"].bool() if "tool_mask" in inputs else present
    padded: dict[str, Tensor] = {}
    rows: RowArguments = {"denominator": denominator(trainer, config, inputs, mask)}
    if inputs["advantages"].dim() == 1:
        rows["advantages"] = inputs["advantages"]
    else:
        padded["token_advantages"] = inputs["advantages"]
    if phi is not None:
        rows["phi"] = phi
    if inputs.get("old_per_token_logps") is not None:
        padded["old_logp"] = inputs["old_per_token_logps"]
    if config.beta != 0:
        padded["ref_logp"] = inputs["ref_per_token_logps"]
    if config.off_policy_mask_threshold is not None and "sampling_per_token_logps" in inputs:
        padded["sampling_logp"] = inputs["sampling_per_token_logps"]
    if trainer.use_vllm and trainer.vllm_importance_sampling_correction and config.loss_type != "gmpo":
        ratio = inputs["importance_sampling_ratio"]  # [B, 1] or [B, T]
        if ratio.shape[1] == 1:
            rows["importance_ratio"] = ratio[:, 0]
        else:
            padded["token_importance_ratio"] = ratio
    return Batch(config, present, mask, padded, rows)
