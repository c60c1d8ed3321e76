"""`run.dry_run`: each stage's first step for real, and then nothing is there that was not there before."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from univg_fast.train.dry_run import right_answers

LINE = r"dry run, stage {}: {} samples in (\d+) rows of (\d+) tokens; loss ([^,]+), grad_norm ([^;]+);(.*)"


def told(run: Any, stage: str, samples: int) -> tuple[float, float, str]:
    """(loss, norm, the rest) of a stage's line."""
    (found,) = re.findall(LINE.format(stage, samples), run.output)
    return float(found[2]), float(found[3]), found[4]


@pytest.mark.slow
def test_one_step_of_each_stage_and_nothing_left(trainer: Callable[..., Any], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    settings = {
        "model__freeze_vision_tower": "true",
        "deepspeed__zero_stage": "2",
        "pack__window": "0",
        "rewards__terms": "{iou: 1, format: 1}",
    }
    dry = trainer(folder, ranks=2, run__dry_run="true", **settings)
    assert "dry run: fine; nothing was saved" in dry.output and "sft 1/60" not in dry.output
    loss, norm, rest = told(dry, "sft", 8)
    assert 3 < loss < 10 and norm > 0 and "update" in rest
    loss, norm, rest = told(dry, "grpo", 6)
    assert abs(loss) < 1e-3 and norm > 0  # on policy the advantages cancel, but not their gradients
    assert "completions of 64 tokens, 16 of them sampled; the right answers' reward 2" in rest
    assert "not tried: 3 evaluations of 6 held-out records, with answers of up to 64 tokens" in dry.output
    assert "if all were as slow" not in rest, "a step without its sampling says nothing of hours"
    assert not folder.exists()
    # the first step of the run itself, which the dry run did not stand in the way of, is the same
    run = trainer(folder, ranks=2, **settings, stages="[sft]", run__max_steps="1")
    assert run.metrics("sft")[0]["loss"] == pytest.approx(told(dry, "sft", 8)[0], rel=1e-3)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    trainer(folder, run__dry_run="true", **settings, stages="[sft]")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_right_answer_that_earns_less_is_named() -> None:
    assert right_answers({"a": 2.0, "b": 2.0}) == "the right answers' reward 2"
    assert right_answers({"a": 2.0, "b": 0.5, "c": 2.0}) == "the right answers' rewards 0.5 (b) to 2, 1.5 in the mean"
    assert "rank 0" in right_answers({})


def test_what_a_run_would_refuse(trainer: Callable[..., Any], tmp_path: Path) -> None:
    """Another configuration's folder; and weights that give no finite loss, which only a step can tell."""
    (tmp_path / "ckpt").mkdir()
    (tmp_path / "config.yaml").write_text("sft: {learning_rate: 1.0}\n")
    refused = trainer(tmp_path, check=False, run__dry_run="true")
    assert refused.code == 1 and "holds a run with another configuration" in refused.output


@pytest.mark.slow
def test_weights_that_are_not_finite(trainer: Callable[..., Any], warm: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for path in warm.iterdir():
        (model / path.name).write_bytes(path.read_bytes())
    weights = load_file(warm / "model.safetensors")
    name = next(name for name in weights if name.endswith("mlp.up_proj.weight"))
    weights[name][0, 0] = float("nan")
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    run = trainer(tmp_path / "run", check=False, run__dry_run="true", stages="[sft]", model__path=str(model))
    assert (
        run.code == 1 and "stage sft: expected a finite loss and gradient in the first step, got loss nan" in run.output
    )
