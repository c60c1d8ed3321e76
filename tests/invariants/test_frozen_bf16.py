"""The published setting in small: frozen vision tower, bfloat16, gradient checkpointing, ZeRO 2 on two ranks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file


@pytest.mark.slow
def test_frozen_tower_in_bfloat16(trainer: Callable[..., Any], warm: Path, tmp_path: Path) -> None:
    settings = {"model__path": str(warm), "model__freeze_vision_tower": "true", "sft__max_steps": "3"}
    exact = trainer(tmp_path / "float32", **settings)
    half = trainer(
        tmp_path / "bfloat16",
        ranks=2,
        **settings,
        model__torch_dtype="bfloat16",
        model__gradient_checkpointing="true",
        deepspeed__zero_stage="2",
    )
    for a, b in zip(half.metrics("sft"), exact.metrics("sft"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=0.05)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=0.2)
    assert all(row["grad_norm"] > 0 and row["kl"] >= 0 for row in half.metrics("grpo"))
    before, after = load_file(warm / "model.safetensors"), load_file(exact.folder / "hf" / "grpo" / "model.safetensors")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and not any("visual" in name for name in moved)
