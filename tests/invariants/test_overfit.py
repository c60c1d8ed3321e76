"""`data.overfit=N`: a run on N records learns them by heart, and says so; `run.max_steps` cuts it where it is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from univg_fast.config import Config
from univg_fast.config.schema import DataConfig
from univg_fast.structs import Record, Target
from univg_fast.train.overfit import overfit
from univg_fast.train.setup import Inputs

USES = ("sft", "grpo", "eval")

SETTINGS = {
    "data__overfit": "4",
    "sft__max_steps": "60",
    "sft__per_step_samples": "4",
    "sft__learning_rate": "2e-3",
    "stages": "[sft]",
}


def test_four_records_are_learned_by_heart(trainer: Callable[..., Any], tmp_path: Path) -> None:
    early = trainer(tmp_path, **SETTINGS, run__max_steps="25")
    assert "trains on the first 4 of data.sft only, and is evaluated on these 4" in early.output
    first = early.metrics("sft")
    assert [row["step"] for row in first] == list(range(1, 26))
    assert (tmp_path / "ckpt" / "sft_000025").is_dir() and not (tmp_path / "hf").exists()
    assert "stopped at run.max_steps=25" in early.output and "report:" in early.output
    whole = trainer(tmp_path, **SETTINGS, run__max_steps="1000")  # beyond the stage's end: as without it
    assert "resumed sft at step 25" in whole.output and "stopped at" not in whole.output
    rows = whole.metrics("sft")
    assert [row["step"] for row in rows] == list(range(1, 61)) and rows[:25] == first
    assert rows[0]["loss"] > 1 and rows[-1]["loss"] < 0.05, [row["loss"] for row in rows]
    before, after = (answers(tmp_path / "eval" / f"{name}.jsonl") for name in ("before", "sft"))
    assert len(after) == 4 and all(row["format"] == 1 for row in after)
    assert not any(row["iou"] >= 0.5 for row in before) and all(row["iou"] >= 0.5 for row in after)


def answers(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_is_evaluated(capsys: pytest.CaptureFixture[str]) -> None:
    """The records of all stages, each once, but for those without a box; fewer than N are no mistake."""
    found = {use: [Record(f"{use}{i}", "f:1", (), "?", (Target((0, 0, 9, 9)),)) for i in range(4)] for use in USES}
    found["sft"][1] = Record("no box", "f:2", (), "?", response="yes")
    found["sft"][0] = found["grpo"][0]
    config = Config(data=DataConfig(overfit=3), stages=("sft", "grpo"))
    got = overfit(config, Inputs(found, None)).records  # type: ignore[arg-type]
    assert {use: [r.uid for r in got[use]] for use in USES} == {
        "sft": ["grpo0", "no box", "sft2"],
        "grpo": ["grpo0", "grpo1", "grpo2"],
        "eval": ["grpo0", "sft2", "grpo1", "grpo2"],
    }
    assert "sft.max_steps is null" in capsys.readouterr().out
    more = overfit(replace(config, data=DataConfig(overfit=9), stages=("grpo",)), Inputs(found, None)).records  # type: ignore[arg-type]
    assert len(more["grpo"]) == len(more["eval"]) == 4
