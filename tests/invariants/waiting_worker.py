"""Run by test_no_sync.py: `waiting_worker.py FOLDER REPORT`: what a step of each stage reads before its optimizer."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from trajectory_worker import GRPO, SFT
from waiting import Calls, Operations

from univg_fast import distributed
from univg_fast.config import load_config
from univg_fast.train.making import make_loader, make_policy, make_step
from univg_fast.train.phases import Phases
from univg_fast.train.setup import prepare
from univg_fast.train.state import StageState

MORE = {"pack.budget_tokens": 200, "model.gradient_checkpointing": True, "model.freeze_vision_tower": True}


def count(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Of a step: in `before` what is read from the first row, or the reference, up to the optimizer.

    Of the third one: in the first trained one ZeRO 3 records the order of modules, and compares it with other ranks'.
    """
    given = (f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in settings.items())
    config = load_config(["--config", "demo", *given])
    (stage,) = config.stages
    inputs, device, start = prepare(config, folder), torch.device("cpu"), config.model.path
    phases, marks = Phases(), {}
    engine, plain = make_policy(stage, config, inputs, start, device)
    with make_loader(stage, config, inputs, engine.module) as loader:
        step = make_step(stage, config, inputs, start, device, engine, plain, loader, phases)
        state = StageState()
        for _ in range(2):
            done = step(state)
            assert done is not None
            state.step, state.cursor = state.step + 1, done.cursor
        with Operations() as operations, Calls() as calls:

            def mark(name: str, _: int) -> None:
                marks.setdefault(name, operations.seen + calls.seen)

            phases.watchers.append(mark)
            outcome = step(state)
            whole = operations.seen + calls.seen
    assert outcome is not None
    began = marks["ref"] if stage == "grpo" else marks["update"]
    return {"before": dict(marks["optim"] - began), "whole": dict(whole), "rows": outcome.metrics["pack/rows"]}


def main() -> None:
    folder, report = map(Path, sys.argv[1:])
    distributed.init()
    found: dict[str, Any] = {}
    for zero in range(4):
        for name, job in (("sft", SFT), ("grpo", GRPO | {"grpo.num_iterations": 1, "grpo.max_completion_length": 16})):
            settings = job | MORE | {"deepspeed.zero_stage": zero, "run.dir": str(folder)}
            found[f"{name} {zero}"] = count(settings, folder / name)
    report.write_text(json.dumps(found))


if __name__ == "__main__":
    distributed.run(main)
