"""What a step does beside model, optimizer and rollout: phases must add up, and the work must have been done."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.overhead import BOUND, FIRST, counted, demo
from bench.overhead_text import overhead_section
from bench.results import newest

ROOT = Path(__file__).resolve().parents[2]


def write(folder: Path, **wrong: float) -> Path:
    """Metrics of two stages, 2 s of whose 10 s are in data, score and no phase; `wrong`: of the last step."""
    phases = {"data": 1.0, "score": 0.5, "other": 0.5, "gen": 3.0, "update": 5.0, "save": 2.0}
    rows = [
        {"stage": stage, "step": i} | {f"timing_s/{k}": v for k, v in phases.items()} | {"timing_s/step": 12.0}
        for stage in ("sft", "grpo")
        for i in range(1, FIRST + 3)
    ]
    rows[-1] |= {f"timing_s/{k}": v for k, v in wrong.items()}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_shares_of_a_run(tmp_path: Path) -> None:
    for row in demo(write(tmp_path)):
        assert row["share"] == pytest.approx(0.2) and row["steps"] == 2 and row["step_s"] == pytest.approx(10.0)
    with pytest.raises(SystemExit, match=r"grpo step 4: phases add up to 13.0"):
        demo(write(tmp_path, gen=4.0))


@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_the_work_of_a_step_is_done(stage: str) -> None:
    """By the trainer's own step: every sample, every scored token, all but the model."""
    row = counted(stage, rounds=1)
    samples, tokens = (24, 24 * 200) if stage == "sft" else (16, 16 * sum(200 + j for j in range(8)))
    assert row["num_samples"] == samples and row["scored_tokens"] == tokens
    assert row["group_tokens"] > samples * 4 * 529 and row["flops"] > 6 * 1.5e9 * samples * 4 * 529
    assert 0 < row["share"] < 10 * BOUND["2b"]  # a figure on a busy machine is no test


def test_the_document_says_it() -> None:
    _, rows = newest(bench="overhead")["cpu"]
    assert [(row["where"], row["stage"]) for row in rows] == [(w, s) for w in BOUND for s in ("sft", "grpo")]
    assert overhead_section() in (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
