"""Which keys a run may have otherwise than it began: what `config_hash` leaves out and what a run folder accepts."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from univg_fast.config.schema import OptimConfig

# No number of a run depends on them; on `stages` only where one is added or left out before others (previous.py).
FREE = (
    *("stages", "save", "log", "fault"),
    *("run.dir", "run.resume", "run.dry_run", "run.max_steps", "run.hang_timeout_s", "run.max_skipped_steps"),
    *("model.export", "model.lora.merge_on_export", "model.gradient_checkpointing"),
    *("data.cache_dir", "data.num_workers", "data.max_bad_fraction"),
    *("rollout.cache_gib", "rollout.cuda_graphs"),
)
# A checkpoint survives them, but from there on the numbers are others: what one sets after a step that did not fit the
# memory, or that diverged. Said, and gone on with.
TOLD = (
    *("pack", "data.max_length", "data.max_pixels", "evaluate.prompts_per_batch", "grpo.reference"),
    *("model.attention", "model.liger", "model.kernels", "deepspeed"),
    *(f"{stage}.{item.name}" for stage in ("sft", "grpo") for item in fields(OptimConfig)),
)


def is_one_of(key: str, listed: tuple[str, ...]) -> bool:
    """Whether the key, or a section that it lies in, is listed."""
    return any(key == name or key.startswith(name + ".") for name in listed)


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {k: v for key, value in tree.items() for k, v in flat(value, f"{prefix}.{key}".lstrip(".")).items()}
