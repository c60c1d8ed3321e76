"""A run that was stopped and started again ends with the numbers and weights of one that was not.

Stage 1 stops in the middle of a window: its 16 records, an epoch, are two steps of 8 whose rows are planned together.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from univg_fast.config import PackConfig
from univg_fast.data.windows import window_steps

NUMBERS = ("loss", "grad_norm", "learning_rate", "reward", "kl", "completions/mean_length")


@pytest.mark.slow
def test_stopped_and_resumed_equals_uninterrupted(trainer: Callable[..., Any], warm: Path, tmp_path: Path) -> None:
    settings = {"model__path": str(warm), "sft__max_steps": "2"}
    whole = trainer(tmp_path / "whole", **settings)
    trainer(tmp_path / "parts", **settings, run__max_steps="1")  # stops in stage 1
    middle = trainer(tmp_path / "parts", **settings, run__max_steps="2")  # ends stage 1, stops in stage 2
    parts = trainer(tmp_path / "parts", **settings)
    assert window_steps(PackConfig().window, 8, 16) == 2
    assert "resumed sft at step 1" in middle.output and "resumed grpo at step 2" in parts.output
    for stage in ("sft", "grpo"):
        got, want = parts.metrics(stage), whole.metrics(stage)
        assert [row["step"] for row in got] == [row["step"] for row in want] == [1, 2, 3][: len(want)]
        for a, b in zip(got, want, strict=True):
            assert {k: a[k] for k in NUMBERS if k in a} == {k: b[k] for k in NUMBERS if k in b}
        weights = [load_file(run.folder / "hf" / stage / "model.safetensors") for run in (parts, whole)]
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


def test_a_finished_run_is_not_trained_again(trainer: Callable[..., Any], warm: Path, tmp_path: Path) -> None:
    settings = {"model__path": str(warm), "sft__max_steps": "2", "stages": "[sft]"}
    first = trainer(tmp_path, **settings)
    again = trainer(tmp_path, **settings)
    assert "sft 1/2" in first.output and "sft 1/2" not in again.output
    assert again.metrics("sft") == first.metrics("sft")
