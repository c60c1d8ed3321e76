"""Run by test_reshape.py: `reshape_worker.py MODE FOLDER`; rank 0 prints JSON: a log for each of COURSES.

The rows of a step, and so its loss, are the same on any number of ranks.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import torch
from engine_problem import OPTIM, TinyLM, batch
from engine_worker import OFFLOAD, SHARD_EVERYTHING, share

from univg_fast import distributed
from univg_fast.config import DeepSpeedConfig, SaveConfig
from univg_fast.train import checkpoint, engine
from univg_fast.train.random_state import reseed
from univg_fast.train.resume import resume
from univg_fast.train.state import StageState

STEPS, SAVED_AT = 5, 2
COURSES = {
    **{f"{zero} float32": (zero, torch.float32) for zero in range(4)},
    **{f"{zero} bfloat16": (zero, torch.bfloat16) for zero in (1, 2, 3)},
    **{f"{zero} float32 offload": (zero, torch.float32, OFFLOAD) for zero in (1, 2, 3)},
}


def course(
    root: Path, goes_on: bool, zero_stage: int, dtype: torch.dtype, deepspeed: dict[str, Any] = SHARD_EVERYTHING
) -> dict[str, Any]:
    """Loss, gradient norm and rate of the steps; a checkpoint on the way, or the steps after it."""
    module = TinyLM().to(dtype)
    if goes_on:
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.mul_(0.5 if parameter.requires_grad else 1.0)
    config = DeepSpeedConfig(zero_stage=zero_stage, config=deepspeed)
    ds = engine.make_engine(module, OPTIM, config, STEPS)
    reseed(zero_stage, 0, distributed.rank())  # as `make_policy` does, with a run.seed of its own at each ZeRO stage
    first = resume(root, "sft", "auto", ds, "hash").step if goes_on else 0
    log: dict[str, Any] = {"first": first, "steps": [], "random": distributed.gather_objects(random.random())}
    for number in range(first, STEPS):
        result = engine.train_step(ds, (ds(*row) for row in share(batch(number), zero_stage))).read()
        loss = distributed.reduce_floats({"loss": result.loss})["loss"]
        log["steps"].append([loss, result.grad_norm, result.learning_rate])
        if not goes_on and number + 1 == SAVED_AT:
            checkpoint.save(root, "sft", StageState(step=SAVED_AT), ds, "hash", SaveConfig(), must=True)
    engine.release(ds)
    return log


def main() -> None:
    distributed.init(timeout_s=300)
    mode, folder = sys.argv[1], Path(sys.argv[2])
    logs = {name: course(folder / name.replace(" ", "_"), mode == "resume", *how) for name, how in COURSES.items()}
    if distributed.is_main():
        print("RESULT " + json.dumps(logs), flush=True)


if __name__ == "__main__":
    distributed.run(main)
