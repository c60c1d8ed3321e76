"""The other faults of the `fault:` section, on the real command: a kill, a full disk, a bad image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Run

from .conftest import assert_same_numbers

pytestmark = [pytest.mark.slow, pytest.mark.drill]


def test_a_killed_run_goes_on(drill: Callable[..., Run], whole: Run, tmp_path: Path) -> None:
    """From its last checkpoint, and the fault does not happen again."""
    settings = {"save__steps": "1", "fault__kind": "sigkill", "fault__stage": "sft", "fault__step": "4"}
    killed = drill(tmp_path / "run", fault__rank="1", fault__phase="optim", **settings)
    assert killed.code == 1 and "exitcode  : -9" in killed.output
    rest = drill(tmp_path / "run", fault__rank="1", fault__phase="optim", **settings)
    assert rest.code == 0, rest.output[-3000:]
    assert "resumed sft at step 3" in rest.output
    assert_same_numbers(rest, whole)


def test_a_full_disk_costs_one_checkpoint(drill: Callable[..., Run], tmp_path: Path) -> None:
    settings = {"stages": "[sft]", "save__steps": "1", "fault__kind": "disk_full", "fault__rank": "1"}
    run = drill(tmp_path / "run", fault__step="2", save__total_limit="3", **settings)
    assert run.code == 0, run.output[-3000:]
    assert "sft_000002 failed on rank 1" in run.output and "save.on_error=warn" in run.output
    assert sorted(p.name for p in (tmp_path / "run" / "ckpt").iterdir()) == [f"sft_00000{n}" for n in (1, 3, 4)]
    assert [row["saves_failed"] for row in run.metrics("sft")] == [0, 0, 1, 1]


def test_a_full_disk_ends_the_run_where_it_is_told_to(drill: Callable[..., Run], tmp_path: Path) -> None:
    settings = {"stages": "[sft]", "save__steps": "1", "fault__kind": "disk_full", "fault__rank": "1"}
    run = drill(tmp_path / "run", fault__step="2", save__on_error="stop", **settings)
    assert run.code == 1 and "error: " in run.output and "sft_000002 failed on rank 1" in run.output
    assert [p.name for p in (tmp_path / "run" / "ckpt").iterdir()] == ["sft_000001"]


def test_an_export_that_fails_costs_no_step(drill: Callable[..., Run], tmp_path: Path) -> None:
    """Also with save.steps=0. The next run has nothing to do but the export."""
    folder = tmp_path / "run"
    stopped = drill(folder, stages="[sft]", save__steps="0", run__max_steps="1")
    assert stopped.code == 0, stopped.output[-3000:]
    (folder / "hf").write_text("where a folder should be")
    failed = drill(folder, stages="[sft]", save__steps="0")
    assert failed.code == 1 and "exporting the model to" in failed.output, failed.output[-3000:]
    assert (folder / "ckpt" / "sft_000004" / "manifest.json").is_file()
    (folder / "hf").unlink()
    rest = drill(folder, stages="[sft]", save__steps="0")
    assert rest.code == 0 and "resumed sft at step 4" in rest.output, rest.output[-3000:]
    assert (folder / "hf" / "sft" / "model.safetensors").is_file()


def test_a_step_without_a_good_record_moves_nothing(trainer: Callable[..., Run], tmp_path: Path) -> None:
    """Nor by momentum or weight decay, nor does the schedule; with one record a step, which is cut in the second."""
    settings = {"fault__kind": "bad_image", "fault__step": "2", "data__max_bad_fraction": "0.5", "stages": "[sft]"}
    settings |= {"sft__max_steps": "3", "sft__per_step_samples": "1", "evaluate__max_samples": "1"}
    settings |= {"sft__lr_scheduler_type": "linear", "sft__warmup_ratio": "0"}
    rows = trainer(tmp_path / "run", ranks=1, **settings).metrics("sft")
    assert [(row["bad_records"], row["scored_tokens"] > 0) for row in rows] == [(0, True), (1, False), (0, True)]
    assert rows[1]["loss"] == rows[1]["grad_norm"] == rows[1]["skipped"] == 0
    assert rows[0]["learning_rate"] != rows[1]["learning_rate"] == rows[2]["learning_rate"]


def test_a_bad_image_is_one_bad_record(drill: Callable[..., Run], tmp_path: Path) -> None:
    settings = {"fault__kind": "bad_image", "fault__step": "2", "fault__rank": "1"}
    run = drill(tmp_path / "run", stages="[sft]", data__max_bad_fraction="0.5", **settings)
    assert run.code == 0, run.output[-3000:]
    assert [row["bad_records"] for row in run.metrics("sft")][:3] == [0, 1, 0]
    assert "rank 1: skipped " in run.output and "cut_" in run.output
