"""Run by test_recipes.py: `recipes_worker.py FOLDER NAME [NAME ...]`: each recipe's stages in this one process."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from tests.conftest import BUILTIN
from univg_fast import distributed
from univg_fast.config import load_config
from univg_fast.train.setup import prepare
from univg_fast.train.stage import run_stage

SMALL = {
    **{f"data.builtin.{key}": json.dumps(value) for key, value in BUILTIN.items()},
    **{f"data.{use}": "[]" for use in ("sft", "grpo", "eval")},
    "sft.max_steps": "2",
    "sft.per_step_samples": "3",
    "grpo.max_steps": "2",
    "grpo.prompts_per_step": "4",
    "grpo.num_generations": "3",
    "grpo.max_completion_length": "12",
    "save.steps": "0",
}
MODELS = {"mg_thinker": "qwen2_5_vl_tiny"}


def run(name: str, folder: Path) -> None:
    folder.mkdir()
    model = MODELS.get(name, "qwen2_vl_tiny")
    given = SMALL | {"run.dir": str(folder), "model.path": model}
    config = load_config(["--config", name, *(f"--{key}={value}" for key, value in given.items())])
    inputs = prepare(config, folder)
    for stage in config.stages:
        model = str(run_stage(stage, config, inputs, model, folder, torch.device("cpu")))


def main() -> None:
    folder, *names = sys.argv[1:]
    distributed.init(timeout_s=300)
    for name in names:
        run(name, Path(folder) / name)


if __name__ == "__main__":
    distributed.run(main)
