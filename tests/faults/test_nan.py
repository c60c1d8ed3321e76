"""NaN on one rank: the step is skipped on all ranks and counted, and K such steps in a row end the run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import Run, timeless
from univg_fast.config import Config
from univg_fast.distributed import RankError
from univg_fast.train.crash import count_skipped, end_if_stuck
from univg_fast.train.state import Outcome, StageState


def test_nan_on_one_rank_skips_the_step_and_two_in_a_row_end_the_run(
    drill: Callable[..., Run], whole: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    run = drill(
        folder,
        stages="[sft]",
        run__max_skipped_steps="2",
        save__steps="1",
        fault__kind="nan_loss",
        fault__rank="1",
        fault__step="2",
        fault__times="2",
    )
    assert run.code == 1
    rows = run.metrics("sft")
    assert timeless(rows[:1]) == timeless(whole.metrics("sft")[:1])
    assert [row["skipped"] for row in rows] == [0, 1, 1] == [row["skipped_in_a_row"] for row in rows][:2] + [1]
    assert rows[-1]["skipped_total"] == 2 and rows[1]["grad_norm"] is None
    assert rows[1]["learning_rate"] == rows[2]["learning_rate"], "the schedule waits, too"
    crash = [json.loads((folder / "crash" / f"sft_000003_rank{rank}.json").read_text()) for rank in range(2)]
    assert crash[1]["suspects"] and set(crash[1]["suspects"]) <= set(crash[1]["uids"]) and crash[0]["suspects"] == []
    counts = {name: crash[0]["metrics"][name] for name in ("skipped_total", "skipped_in_a_row", "saves_failed")}
    assert counts == {"skipped_total": 2, "skipped_in_a_row": 2, "saves_failed": 0}
    message = next(line for line in run.output.splitlines() if line.startswith("error: sft: 2 steps in a row"))
    assert f"rank 1: {crash[1]['suspects'][0]}" in message and "rank 0: " not in message
    assert torch.load(crash[0]["random_state"], weights_only=False).keys() >= {"python", "numpy", "torch"}
    assert [p.name for p in (folder / "ckpt").iterdir()] == ["sft_000001"], "none of the steps that moved nothing"


@pytest.mark.slow
@pytest.mark.drill
@pytest.mark.parametrize("zero_stage", ["0", "1", "2", "3"])
def test_a_nan_gradient_is_passed_over_and_the_run_ends_well(
    drill: Callable[..., Run], tmp_path: Path, zero_stage: str
) -> None:
    folder = tmp_path / "run"
    settings = {"fault__kind": "nan_gradient", "fault__step": "2", "fault__rank": "1"}
    run = drill(folder, stages="[sft]", deepspeed__zero_stage=zero_stage, **settings)
    assert run.code == 0, run.output[-3000:]
    assert [row["skipped"] for row in run.metrics("sft")] == [0, 1, 0, 0]
    assert [row["skipped_in_a_row"] for row in run.metrics("sft")] == [0, 1, 0, 0]
    weights = load_file(folder / "hf" / "sft" / "model.safetensors")
    assert all(torch.isfinite(value).all() for value in weights.values())


def test_a_step_of_which_one_update_moved_is_not_stuck() -> None:
    state = StageState()
    some, all_ = {"skipped": 3.0, "updates": 4.0}, {"skipped": 4.0, "updates": 4.0}
    counts = [count_skipped(state, metrics)["skipped_in_a_row"] for metrics in (all_, all_, some, all_)]
    assert counts == [1, 2, 0, 1] and state.skipped == 15
    assert count_skipped(state, {"skipped": 1.0})["skipped_in_a_row"] == 2, "stage 1: one update in each step"
    assert count_skipped(state, {"skipped": 0.0, "updates": 0.0})["skipped_in_a_row"] == 0


def test_a_full_disk_does_not_hide_the_suspects(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The last words need no file: a rank that raised before they are gathered would leave the others waiting."""
    (tmp_path / "crash").write_text("where a folder should be")
    outcome = Outcome({}, [], [], 0, suspects=["train.json:7"])
    with pytest.raises(RankError, match="rank 0: train.json:7"):
        end_if_stuck(StageState(step=12, skipped_in_a_row=10), outcome, Config(), "sft", "m", tmp_path)
    assert "crash could not be written, the run goes on" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.drill
def test_a_nan_loss_in_stage_2(drill: Callable[..., Run], tmp_path: Path) -> None:
    run = drill(tmp_path / "run", stages="[grpo]", fault__kind="nan_loss", fault__step="2", fault__rank="0")
    assert run.code == 0, run.output[-3000:]
    assert [row["skipped"] for row in run.metrics("grpo")] == [0, 1, 0]
