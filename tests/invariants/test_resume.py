"""A run that was stopped and started again ends with the numbers and weights of one that was not, to the last bit.

Here each stage in the middle, at every ZeRO stage, on one rank and two, by another process whose random streams begin
elsewhere, and once more in an update that is given up; and the whole command, stopped in both stages.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import timeless
from univg_fast.config import PackConfig
from univg_fast.data.windows import window_steps

pytestmark = pytest.mark.timeout(2400)  # a fixture is two launches with twelve jobs each
NUMBERS = ("loss", "grad_norm", "learning_rate", "reward", "kl", "completions/mean_length")
VARIANTS = ["0", "1", "2", "3", "1 lora", "3 lora"]  # ZeRO stages; what else differs: resume_worker.py
STEPS, SAVED_AT = 4, 2


@pytest.fixture(scope="module", params=[1, 2], ids=lambda ranks: f"ranks{ranks}")
def folder(
    request: pytest.FixtureRequest, python_launcher: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with whole/JOB and rest/JOB, as resume_worker.py leaves them."""
    found = tmp_path_factory.mktemp("resume")
    for mode in ("whole", "rest"):
        worker = str(Path(__file__).with_name("resume_worker.py"))
        done = python_launcher(worker, mode, str(found), ranks=request.param, timeout=1100)
        logs = "\n".join(path.read_text()[-1000:] for path in found.glob("*/*.log"))
        assert done.returncode == 0, done.stderr[-4000:] + logs[-4000:]
    return found


def metrics(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    return timeless(rows)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "grpo"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_resume_is_bit_exact(folder: Path, stage: str, variant: str) -> None:
    job = f"{stage} {variant}"
    log = (folder / "rest" / f"{job} rank 0.log").read_text()
    assert f"resumed {stage} at step {SAVED_AT} from " in log
    assert "stopped by SIGTERM" in log and f"resumed {stage} at step {STEPS - 1} from " in log, "an update was given up"
    whole, rest = (metrics(folder / mode / job) for mode in ("whole", "rest"))
    assert all(row["grad_norm"] > 0 for row in whole) and len({row["loss"] for row in whole}) == STEPS, (
        "nothing learned"
    )
    assert rest == whole, "every metric of every step"
    weights, others = (
        load_file(folder / mode / job / "hf" / stage / "model.safetensors") for mode in ("whole", "rest")
    )
    assert all(torch.equal(weights[name], others[name]) for name in others)
    if job == "grpo 2":
        draws = [row["sampling/draws"] for row in whole]
        assert sum(draws[:SAVED_AT]) > SAVED_AT, "the loader's cursor is not the step's number"


@pytest.mark.slow
def test_stopped_and_resumed_equals_uninterrupted(trainer: Callable[..., Any], warm: Path, tmp_path: Path) -> None:
    """Stage 1 stops in the middle of a window: its 16 records, an epoch, are two steps of 8, planned together."""
    settings = {"model__path": str(warm), "sft__max_steps": "2"}
    whole = trainer(tmp_path / "whole", **settings)
    trainer(tmp_path / "parts", **settings, run__max_steps="1")  # stops in stage 1
    middle = trainer(tmp_path / "parts", **settings, run__max_steps="2")  # ends stage 1, stops in stage 2
    exported = trainer(tmp_path / "parts", **settings, model__export=str(tmp_path / "of_the_checkpoint"))
    parts = trainer(tmp_path / "parts", **settings)
    assert window_steps(PackConfig().window, 8, 16) == 2
    assert "resumed sft at step 1" in middle.output and "resumed grpo at step 2" in parts.output
    assert f"exported {tmp_path / 'parts' / 'ckpt' / 'grpo_000002'} to" in exported.output
    assert (tmp_path / "of_the_checkpoint" / "model.safetensors").is_file()
    for stage in ("sft", "grpo"):
        got, want = parts.metrics(stage), whole.metrics(stage)
        assert [row["step"] for row in got] == [row["step"] for row in want] == [1, 2, 3][: len(want)]
        for a, b in zip(got, want, strict=True):
            assert {k: a[k] for k in NUMBERS if k in a} == {k: b[k] for k in NUMBERS if k in b}
        weights = [load_file(run.folder / "hf" / stage / "model.safetensors") for run in (parts, whole)]
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


def test_a_finished_run_is_not_trained_again_and_can_be_exported(trainer: Callable[..., Any], tmp_path: Path) -> None:
    settings = {"sft__max_steps": "2", "stages": "[sft]"}
    first = trainer(tmp_path / "run", **settings)
    again = trainer(tmp_path / "run", **settings)
    assert "sft 1/2" in first.output and "sft 1/2" not in again.output
    assert again.metrics("sft") == first.metrics("sft")
    trainer(tmp_path / "run", model__export=str(tmp_path / "copy"))  # the run's own configuration says the rest
    for name in ("model.safetensors", "tokenizer.json", "preprocessor_config.json"):
        assert (tmp_path / "copy" / name).read_bytes() == (tmp_path / "run" / "hf" / "sft" / name).read_bytes()
    refused = trainer(tmp_path / "run", check=False, model__export=str(tmp_path / "copy"))
    assert refused.code != 0 and "expected a folder that is not there yet" in refused.output
