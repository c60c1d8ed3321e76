"""Prompts that are drawn until enough rewards differ, in whole runs: on two ranks, and after an interruption."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

COMPARED = ("loss", "grad_norm", "kl", "entropy", "reward", "miou", "completions/mean_length", "scored_tokens")
EXACT = ("sampling/draws", "sampling/kept", "sampling/wasted", "frac_reward_zero_std", "num_samples", "updates")


@pytest.mark.slow
def test_a_run_that_draws_anew_hangs_on_no_rank_and_goes_on_where_it_was(
    trainer: Callable[..., Any], warm: Path, tmp_path: Path
) -> None:
    settings = {
        "stages": "[grpo]",
        "model__path": str(warm),
        "data__builtin__num_eval": "1",
        "evaluate__max_completion_length": "4",
        "grpo__max_steps": "2",
        "grpo__dynamic_sampling_max_draws": "3",
        "grpo__steps_per_generation": "2",
        "grpo__num_iterations": "2",
        "grpo__loss_type": "dapo",
        "grpo__scale_rewards": "batch",
        "grpo__normalize_difficulty": "true",
        "grpo__adam_epsilon": "1e-3",  # as in test_world_size.py: a step is proportional to its gradient
        "grpo__learning_rate": "1e-3",
    }
    whole = trainer(tmp_path / "whole", ranks=2, **settings, deepspeed__zero_stage="2").metrics("grpo")
    trainer(tmp_path / "parts", **settings, run__max_steps="1")
    again = trainer(tmp_path / "parts", **settings)
    parts = again.metrics("grpo")
    assert "resumed grpo at step 1" in again.output
    assert len(parts) == len(whole) == 2 and max(row["sampling/draws"] for row in whole[:1]) > 1
    for got, want in zip(parts, whole, strict=True):
        assert {name: got[name] for name in EXACT} == {name: want[name] for name in EXACT}
        for name in COMPARED:
            bound = 1e-4 if name == "grad_norm" else 1e-5
            assert got[name] == pytest.approx(want[name], rel=bound, abs=1e-5), f"step {want['step']}: {name}"
        assert want["updates"] == 4 and want["grad_norm"] > 0
