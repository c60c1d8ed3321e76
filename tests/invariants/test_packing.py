"""How steps are laid into rows changes no number of a run: not the budget, not splitting groups, not the ranks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

COMPARED = {
    "sft": ("loss", "grad_norm", "scored_tokens"),
    "grpo": ("loss", "grad_norm", "kl", "entropy", "reward", "miou", "completions/mean_length"),
}
SETTINGS = {
    "pack__window": "0",  # the same samples in a step, whatever the budget
    "sft__max_steps": "2",
    "grpo__max_steps": "2",
    "sft__adam_epsilon": "1e-3",  # as in test_world_size.py: a step is proportional to its gradient
    "grpo__adam_epsilon": "1e-3",
    "grpo__learning_rate": "1e-3",
    "evaluate__max_completion_length": "4",  # answers are not looked at
}


@pytest.mark.slow
def test_a_small_budget_gives_the_same_run(trainer: Callable[..., Any], warm: Path, tmp_path: Path) -> None:
    settings = SETTINGS | {"model__path": str(warm)}
    wide = trainer(tmp_path / "wide", **settings, pack__budget_tokens="4096")
    narrow = trainer(tmp_path / "narrow", ranks=2, **settings, pack__budget_tokens="80", deepspeed__zero_stage="2")
    for stage, keys in COMPARED.items():
        got, want = narrow.metrics(stage), wide.metrics(stage)
        assert len(got) == len(want) == 2
        for a, b in zip(got, want, strict=True):
            for key in keys:
                bound = 1e-4 if key == "grad_norm" else 1e-5
                assert a[key] == pytest.approx(b[key], rel=bound, abs=1e-5), f"{stage} step {a['step']}: {key}"
            assert b["pack/rows"] == 1 and a["pack/rows"] > 4
    (step, *_), (other, *_) = narrow.metrics("grpo"), wide.metrics("grpo")
    assert step["packed_tokens"] > other["packed_tokens"]  # prompts in several rows
    assert other["pack/shared"] > step["pack/shared"] >= 0 and step["dense_tokens"] == other["dense_tokens"]
    over = [row["pack/over_budget"] for run in (wide, narrow) for stage in COMPARED for row in run.metrics(stage)]
    assert max(over[:4]) == 0 < max(over[4:]) and "more than pack.budget_tokens=80" in narrow.output
