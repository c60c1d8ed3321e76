"""Two runs with one seed are equal to the last bit: metrics, completions, weights, answers. Another seed differs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import timeless

SETTINGS = {"sft__max_steps": "2", "grpo__max_steps": "2", "log__rollout_steps": "1"}


def numbers(run: Any) -> list[dict[str, Any]]:
    return timeless([*run.metrics("sft"), *run.metrics("grpo")])


def files(folder: Path) -> dict[str, bytes]:
    """What a run makes out of numbers, by name."""
    paths = [*folder.glob("hf/*/model.safetensors"), *folder.glob("rollouts/*.jsonl"), *folder.glob("eval/*.jsonl")]
    return {str(path.relative_to(folder)): path.read_bytes().replace(bytes(folder), b"") for path in paths}


@pytest.mark.slow
def test_a_seed_says_everything(trainer: Callable[..., Any], warm: Path, tmp_path: Path) -> None:
    settings = SETTINGS | {"model__path": str(warm)}
    first = trainer(tmp_path / "first", **settings)
    again = trainer(tmp_path / "again", **settings, data__num_workers="2")  # threads change no number
    other = trainer(tmp_path / "other", **settings, run__seed="43")
    assert numbers(first) == numbers(again) and len(numbers(first)) == 4
    made = files(first.folder)
    assert len(made) == 2 + 2 + 3 and made == files(again.folder)
    differ = {name for name, content in files(other.folder).items() if content != made[name]}
    assert differ == made.keys() - {"eval/before.jsonl"}  # greedy answers of the same weights
    completions = [json.loads(line) for line in made["rollouts/grpo_000002.jsonl"].splitlines()]
    assert len({c["text"] for row in completions for c in row["completions"]}) > 4  # sampled, not greedy
    for a, b in zip(numbers(first), numbers(other), strict=True):
        assert a != b and (a["stage"] == "grpo" or a["loss"] != b["loss"])
