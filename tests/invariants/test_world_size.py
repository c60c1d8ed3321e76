"""The same global batch gives the same losses on one rank or two, sampling included (more: test_trajectories.py)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

STAGES = ("sft", "grpo")
COMPARED = {
    "sft": ("loss", "grad_norm", "scored_tokens"),
    "grpo": ("loss", "grad_norm", "kl", "entropy", "reward", "miou", "difficulty_weight", "completions/mean_length"),
}


@pytest.fixture(scope="module")
def one_rank(trainer: Callable[..., Any], warm: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return run(trainer, warm, tmp_path_factory.mktemp("one"), ranks=1, zero_stage=0)


# AdamW's first steps are nearly the sign of a gradient: the rounding of tiny ones becomes steps, then other samples.
# With this epsilon a step is proportional to its gradient, and equal runs stay equal.
SMOOTH = {"sft__adam_epsilon": "1e-3", "grpo__adam_epsilon": "1e-3", "grpo__learning_rate": "1e-3"}
SMOOTH["evaluate__max_completion_length"] = "4"  # answers are not looked at


def run(trainer: Callable[..., Any], warm: Path, folder: Path, ranks: int, zero_stage: int) -> Any:
    return trainer(
        folder, ranks, model__path=str(warm), sft__max_steps="3", deepspeed__zero_stage=str(zero_stage), **SMOOTH
    )


def test_the_rewards_teach_something(one_rank: Any) -> None:
    """Otherwise the comparison below would compare zeros."""
    rows = one_rank.metrics("grpo")
    assert len(rows) == 3
    assert all(row["frac_reward_zero_std"] < 1 and row["grad_norm"] > 0 for row in rows)
    assert rows[-1]["kl"] > 0
    assert all(row["sampling/sampling_logp_difference/max"] <= 1e-4 for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "zero_stage"), [(2, 0), (2, 2), (2, 3)])
def test_same_losses(
    trainer: Callable[..., Any], warm: Path, one_rank: Any, tmp_path: Path, ranks: int, zero_stage: int
) -> None:
    other = run(trainer, warm, tmp_path, ranks, zero_stage)
    for stage in STAGES:
        got, want = other.metrics(stage), one_rank.metrics(stage)
        assert len(got) == len(want) == 3
        for a, b in zip(got, want, strict=True):
            for key in COMPARED[stage]:
                bound = 1e-4 if key == "grad_norm" else 1e-5
                assert a[key] == pytest.approx(b[key], rel=bound, abs=1e-5), f"{stage} step {a['step']}: {key}"
