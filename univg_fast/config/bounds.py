"""What a configuration may not say: values out of bounds, and keys that contradict each other."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

from univg_fast.config.losses import loss_config
from univg_fast.data.entries import check_entry

if TYPE_CHECKING:
    from univg_fast.config.schema import Config, GrpoStageConfig


BATCH = "sft.per_step_samples or grpo.prompts_per_step, and pack.budget_tokens for the length of a row"
OFFLOADED_TO = ("none", "cpu", "nvme")
# Of DeepSpeed's keys those that this trainer sets, and what to use in their place.
MANAGED = {
    "train_batch_size": BATCH,
    "train_micro_batch_size_per_gpu": BATCH,
    "gradient_accumulation_steps": BATCH,
    "managed_gradient_accumulation": BATCH,
    "gradient_clipping": "sft.max_grad_norm or grpo.max_grad_norm",
    "optimizer": "the keys of sft and grpo: learning_rate, weight_decay, adam_beta1, adam_beta2, adam_epsilon",
    "scheduler": "the keys of sft and grpo: lr_scheduler_type, warmup_ratio, min_lr_rate",
    "fp16": "model.torch_dtype (float32 or bfloat16)",
    "amp": "model.torch_dtype (float32 or bfloat16)",
    "bf16.enabled": "model.torch_dtype (float32 or bfloat16)",
    "bf16.check_grad_overflow": "run.max_skipped_steps: a step that is not finite is always skipped",
    "zero_optimization.stage": "deepspeed.zero_stage",
}
# Said here where nothing else is named to train, and where adapters are made, if what is named is not of the tower.
TOWER_BESIDE_LORA = (
    "model.freeze_vision_tower: expected true beside model.lora, which trains adapters of the language model alone, "
    "got false; add --model.freeze_vision_tower=true, or name what of the tower is to train: "
    "--model.lora.modules_to_save=[visual.merger] (as a whole), or endings in model.lora.target_modules"
)


def check(config: Config) -> None:
    """ValueError ("key: expected …, got …") at a value out of bounds or in conflict with another key."""
    _check_bounds(config, "")
    if not config.stages:
        raise ValueError("stages: expected at least one of sft, grpo; got none")
    if config.data.builtin is not None and (config.data.sft or config.data.grpo or config.data.eval):
        raise ValueError("data.builtin: expected null where data.sft, data.grpo or data.eval name files")
    for use in ("sft", "grpo", "eval"):
        for entry in getattr(config.data, use):
            try:
                check_entry(entry)
            except ValueError as error:
                raise ValueError(f"data.{use}: {error}") from None
    if "" in config.rollout.stop_strings:
        raise ValueError("rollout.stop_strings: expected texts of at least one character, got an empty one")
    if config.data.min_pixels > config.data.max_pixels:
        limit, got = config.data.max_pixels, config.data.min_pixels
        raise ValueError(f"data.min_pixels: expected at most data.max_pixels ({limit}), got {got}")
    if config.rewards.iou_low > config.rewards.iou_high:
        high, low = config.rewards.iou_high, config.rewards.iou_low
        raise ValueError(f"rewards.iou_low: expected at most rewards.iou_high ({high}), got {low}")
    if config.rewards.difficulty_from not in config.rewards.terms:
        terms, source = ", ".join(config.rewards.terms) or "none", config.rewards.difficulty_from
        raise ValueError(f"rewards.difficulty_from: expected one of rewards.terms ({terms}), got {source!r}")
    _check_deepspeed(config.deepspeed.config)
    _check_grpo(config.grpo)
    lora = config.model.lora
    if lora is not None and not (config.model.freeze_vision_tower or lora.target_modules or lora.modules_to_save):
        raise ValueError(TOWER_BESIDE_LORA)
    dropout = lora.lora_dropout if lora is not None and "grpo" in config.stages else 0.0
    for key in ("steps_per_generation", "num_iterations") if dropout > 0 else ():
        if (steps := getattr(config.grpo, key)) > 1:  # old log-probs have another mask or none: ratios begin beside 1
            raise ValueError(
                f"grpo.{key}: expected 1 beside model.lora.lora_dropout={dropout:g}, which would be in the ratios of "
                f"all optimizer steps of a rollout but the first, got {steps}; set lora_dropout to 0"
            )


def _check_grpo(grpo: GrpoStageConfig) -> None:
    loss_config(grpo)
    if grpo.steps_per_generation > grpo.prompts_per_step:
        most, got = grpo.prompts_per_step, grpo.steps_per_generation
        raise ValueError(f"grpo.steps_per_generation: expected at most grpo.prompts_per_step ({most}), got {got}")


def _check_deepspeed(given: dict[str, Any]) -> None:
    zero = given.get("zero_optimization", {})
    if not isinstance(zero, dict):
        raise ValueError(f"deepspeed.config: expected zero_optimization to be a mapping of keys, got {zero!r}")
    offload = zero.get("offload_optimizer") or {}
    if not isinstance(offload, dict) or offload.get("device", "none") not in OFFLOADED_TO:
        raise ValueError(  # DeepSpeed would look only after its optimizer is compiled, which takes minutes
            "deepspeed.config: expected zero_optimization.offload_optimizer to have as device one of "
            f"{', '.join(OFFLOADED_TO)}, got {offload!r}"
        )
    for key, instead in MANAGED.items():
        section, _, name = key.rpartition(".")
        held = given.get(section, {}) if section else given
        if isinstance(held, dict) and name in held:
            raise ValueError(
                f"deepspeed.config: expected no {key} ({held[name]!r}), which the trainer sets; use {instead}"
            )


def _check_bounds(section: Any, prefix: str) -> None:
    for item in fields(section):
        value, key = getattr(section, item.name), prefix + item.name
        if is_dataclass(value):
            _check_bounds(value, key + ".")
        elif value is not None and "bounds" in item.metadata:
            gt, ge, le = item.metadata["bounds"]
            ok = (gt is None or value > gt) and (ge is None or value >= ge) and (le is None or value <= le)
            if not ok:  # also reached by NaN
                limits = [f"{sign} {x:g}" for sign, x in ((">", gt), (">=", ge), ("<=", le)) if x is not None]
                raise ValueError(f"{key}: expected a number {' and '.join(limits)}, got {value!r}")
