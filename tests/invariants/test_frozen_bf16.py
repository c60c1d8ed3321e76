"""The published setting in small: frozen vision tower, bfloat16, gradient checkpointing, ZeRO 2 on two ranks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file


def losses_of(run: Any) -> list[float]:
    return [row["loss"] for row in run.metrics("sft")]


@pytest.mark.slow
def test_frozen_tower_in_bfloat16(trainer: Callable[..., Any], warm: Path, tmp_path: Path) -> None:
    settings = {"model__path": str(warm), "model__freeze_vision_tower": "true", "sft__max_steps": "3"}
    settings["evaluate__max_completion_length"] = "4"  # answers are not looked at
    settings["pack__window"] = "0"  # the same samples in a step, whatever the budget
    settings["sft__learning_rate"] = "3e-4"  # a warm model that forgets in three steps would get no reward in stage 2
    exact = trainer(tmp_path / "float32", **settings)
    # every rank makes the same number of passes at ZeRO 3, rows or not: the spare row must not enter a frozen tower
    apart = settings | {"deepspeed__zero_stage": "3", "pack__budget_tokens": "400", "stages": "[sft]"}
    sharded = trainer(tmp_path / "sharded", ranks=2, **apart)
    assert [row["loss"] for row in sharded.metrics("sft")] == pytest.approx(losses_of(exact), rel=1e-5)
    half = trainer(
        tmp_path / "bfloat16",
        ranks=2,
        **settings,
        model__torch_dtype="bfloat16",
        model__gradient_checkpointing="true",
        deepspeed__zero_stage="2",
    )
    rounded, true = losses_of(half), losses_of(exact)
    assert rounded[0] == pytest.approx(true[0], rel=0.05)
    assert rounded[-1] == pytest.approx(true[-1], rel=0.2)  # it follows other, rounded weights
    assert all(row["grad_norm"] > 0 and row["kl"] >= 0 for row in half.metrics("grpo"))
    before, after = load_file(warm / "model.safetensors"), load_file(exact.folder / "hf" / "grpo" / "model.safetensors")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and not any("visual" in name for name in moved)
