"""Run by test_resume.py, under torchrun: `resume_worker.py MODE FOLDER`: one job after the other in this process.

MODE whole: each of JOBS without interruption, in FOLDER/whole/NAME, with a checkpoint in the middle.
MODE rest: from that checkpoint to the end in FOLDER/rest/NAME; the process begins with other random streams. It is
stopped once more, in the last step's update, which is given up after its first row.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.conftest import BUILTIN
from univg_fast import distributed
from univg_fast.config import load_config
from univg_fast.train import stopping
from univg_fast.train.phases import Phases
from univg_fast.train.setup import prepare
from univg_fast.train.stage import run_stage

STEPS, SAVED_AT = 4, 2
REWARD = f"{Path(__file__).with_name('chance_reward.py')}:chance"
COMMON = {
    **{f"data.builtin.{key}": value for key, value in BUILTIN.items()},
    "data.prompt_template": "short",
    "model.freeze_vision_tower": False,
    "pack.budget_tokens": 200,  # several rows
    "save.steps": SAVED_AT,
    "sft.max_steps": STEPS,
    "sft.per_step_samples": 4,  # the 16 records, an epoch, are one window of rows: the stop is in its middle
    "sft.learning_rate": 2e-3,
    "grpo.max_steps": STEPS,
    "grpo.prompts_per_step": 2,
    "grpo.num_generations": 3,
    "grpo.max_completion_length": 12,
    "grpo.learning_rate": 1e-3,
    "grpo.difficulty": "none",
    "rewards.terms": {REWARD: 1.0},
    "rewards.difficulty_from": REWARD,
    "deepspeed.config": {"zero_optimization": {"stage3_param_persistence_threshold": 0}},
}
LORA = {
    "model.freeze_vision_tower": True,
    "model.lora.r": 4,
    "model.lora.lora_dropout": 0.5,  # draws from the global random stream
}
VARIANTS: dict[str, dict[str, Any]] = {
    "0": {},
    "1": {"grpo.num_iterations": 2},
    "2": {"grpo.dynamic_sampling_max_draws": 3, "grpo.num_generations": 2},  # draws more batches than steps
    "3": {"model.freeze_vision_tower": True},
    "1 lora": LORA,
    "3 lora": LORA,
}
JOBS = {f"{stage} {name}": COMMON | settings for stage in ("sft", "grpo") for name, settings in VARIANTS.items()}


def run(name: str, folder: Path, mode: str) -> None:
    stage, zero_stage = name.split()[:2]
    settings = JOBS[name] | {"stages": [stage], "deepspeed.zero_stage": int(zero_stage), "run.dir": str(folder)}
    given = (f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in settings.items())
    config = load_config(["--config", "demo", *given])
    if distributed.is_main():
        folder.mkdir(parents=True)
    distributed.barrier()
    if mode == "rest":
        if distributed.is_main():
            interrupted = folder.parents[1] / "whole" / name
            saved = f"{stage}_{SAVED_AT:06d}"  # the last step is saved as well
            shutil.copytree(interrupted / "ckpt" / saved, folder / "ckpt" / saved)
            shutil.copy(interrupted / "metrics.jsonl", folder)  # the later steps of it are written anew
        distributed.barrier()
    seed = distributed.rank() + (0 if mode == "whole" else 100)
    for seeded in (random.seed, np.random.seed, torch.manual_seed):
        seeded(seed)
    inputs = prepare(config, folder)
    if mode == "rest":
        stopped_late(partial(run_stage, stage, config, inputs, config.model.path, folder, torch.device("cpu")))
    run_stage(stage, config, inputs, config.model.path, folder, torch.device("cpu"))


def stopped_late(run: Callable[..., Path | None]) -> None:
    """A signal on the last rank, as if FINISH_S had passed when the first row of the last step's update was done."""
    phases, is_late = Phases(), stopping.is_late

    def hear(name: str, step: int) -> None:
        if (name, step) == ("update", STEPS):
            stopping._number = signal.SIGTERM

    if distributed.rank() == distributed.world_size() - 1:
        phases.watchers.append(hear)
        stopping.is_late = lambda: stopping.requested() and phases.rows > 0
    try:
        run(phases=phases)
    except stopping.Stopped as stopped:
        print(stopped)
    finally:
        stopping._number, stopping.is_late = 0, is_late


def main() -> None:
    mode, root = sys.argv[1], Path(sys.argv[2])
    distributed.init()
    (root / mode).mkdir(exist_ok=True)
    for name in JOBS:
        log = root / mode / f"{name} rank {distributed.rank()}.log"
        with log.open("w") as file, redirect_stdout(file), redirect_stderr(file):
            run(name, root / mode / name, mode)


if __name__ == "__main__":
    distributed.run(main)
