"""Run by test_checkpoint.py: `checkpoint_worker.py MODE ZERO_STAGE FOLDER [CHOICE]`; rank 0 prints JSON.

ZERO_STAGE may be several, as 0,1,1b, where b means bfloat16: then the mode runs once for each of them, in FOLDER/STAGE.

A step draws from every random stream, so that a run that does not restore one of them takes another course.
"""

from __future__ import annotations

import json
import random
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from engine_problem import OPTIM, TinyLM, batch

from univg_fast import distributed
from univg_fast.config import Config, DeepSpeedConfig, SaveConfig
from univg_fast.train import checkpoint, engine, manifest, stopping
from univg_fast.train.faults import Faults
from univg_fast.train.phases import Phases
from univg_fast.train.random_state import random_state, set_random_state
from univg_fast.train.reshape import frozen_sum
from univg_fast.train.resume import resume as resume_from
from univg_fast.train.saves import Saves
from univg_fast.train.state import StageState

STEPS, SAVED_AT = 5, 2
ROOT, DTYPE = Path(), torch.float32  # set in main


def start(zero_stage: int, seed: int, **optim: float) -> Any:
    for seeded in (random.seed, np.random.seed, torch.manual_seed):
        seeded(seed + distributed.rank())
    config = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
    return engine.make_engine(
        TinyLM().to(DTYPE), replace(OPTIM, **optim), DeepSpeedConfig(zero_stage=zero_stage, config=config), STEPS
    )


def step(ds: Any, number: int) -> list[float]:
    noise = [random.random(), np.random.rand(), torch.rand(()).item()]
    tokens, targets, weight = batch(number)[distributed.rank()]
    result = engine.train_step(ds, [ds(tokens, targets, weight * (1 + sum(noise)))]).read()
    loss = distributed.reduce_floats({"loss": result.loss})["loss"]
    return [loss, result.grad_norm, result.learning_rate]


def save(ds: Any, number: int, folder: Path | None = None, **config: Any) -> None:
    state = StageState(step=number, cursor=number * 10)
    checkpoint.save(folder or ROOT, "sft", state, ds, "hash", SaveConfig(**{"on_error": "stop"} | config))


def train(zero_stage: int) -> Any:
    """All the steps; a checkpoint on the way. Then the first ones again, and what an update that is given up leaves."""
    ds, log = start(zero_stage, seed=1), []
    for number in range(STEPS):
        log.append(step(ds, number))
        if number + 1 == SAVED_AT:
            save(ds, SAVED_AT)
    engine.release(ds)
    ds = start(zero_stage, seed=1)
    for number in range(SAVED_AT):
        step(ds, number)
    streams = random_state()
    with suppress(stopping.GivenUp):
        engine.train_step(ds, rows_that_are_given_up(ds))
    set_random_state(streams)
    save(ds, SAVED_AT, ROOT / "given_up")
    return log


def rows_that_are_given_up(ds: Any) -> Iterator[torch.Tensor]:
    for number in (SAVED_AT, SAVED_AT + 1):
        tokens, targets, weight = batch(number)[distributed.rank()]
        yield ds(tokens, targets, weight * torch.rand(()).item())
    raise stopping.GivenUp


def resume(zero_stage: int) -> Any:
    """The rest of the steps in a new process, whose own seed and weights lead elsewhere; and at other rates."""
    logs = []
    for folder in (ROOT, ROOT / "given_up"):
        ds = start(zero_stage, seed=99)
        with torch.no_grad():
            for parameter in ds.module.parameters():
                parameter.mul_(0.5 if parameter.requires_grad else 1.0)
        assert resume_from(folder, "sft", "auto", ds, "hash") == StageState(step=SAVED_AT, cursor=SAVED_AT * 10)
        logs.append([step(ds, number) for number in range(SAVED_AT, STEPS)])
        engine.release(ds)
    ds = start(zero_stage, seed=1, learning_rate=OPTIM.learning_rate / 2, weight_decay=0.0, adam_beta2=0.5)
    resume_from(ROOT, "sft", "auto", ds, "hash")
    rates = [step(ds, number)[-1] for number in range(SAVED_AT, STEPS)]
    groups = [[group["weight_decay"], *group["betas"]] for group in ds.lr_scheduler.optimizer.param_groups]
    return {"log": logs[0], "given_up": logs[1], "rates": rates, "groups": groups}


def fail(zero_stage: int) -> Any:
    """The last rank may not write files of more than 1 KiB: both must give up, keep the old one, go on."""
    ds = start(zero_stage, seed=1)
    step(ds, 0)
    save(ds, 1)
    last = distributed.rank() == distributed.world_size() - 1
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if last:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
    try:
        save(ds, 2)
        message = "no error"
    except distributed.RankError as error:
        message = str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    between = sorted(p.name for p in ROOT.iterdir())
    if distributed.is_main():
        (ROOT / "sft_000001" / "manifest.json").write_text("damaged")  # nor may that stop the next one
    distributed.barrier()
    step(ds, 1)
    save(ds, 3, total_limit=1)
    return {
        "messages": distributed.gather_objects(message),
        "between": between,
        "after": sorted(p.name for p in ROOT.iterdir()),
    }


def sums(zero_stage: int) -> Any:
    """What several saves of a stage say of the weights that do not train, of which one is changed meanwhile."""
    ds, state, phases = start(zero_stage, seed=1), StageState(), Phases()
    given = replace(Config(), save=SaveConfig(total_limit=2, on_error="stop"))
    saves = Saves("sft", given, ROOT, state, ds, phases, Faults(given.fault, phases, ROOT), STEPS, STEPS)
    before, after = frozen_sum(ds.module), 0
    for state.step in (1, 2):
        saves.write(must=True)
        for parameter in (p for p in ds.module.parameters() if not p.requires_grad):
            parameter.data.add_(1.0)
        after = after or frozen_sum(ds.module)
    found = [manifest.read(folder)["frozen"] for folder in manifest.of_stage(ROOT / "ckpt", "sft")]
    return {"before": before, "after": after, "found": found}


def loop(zero_stage: int) -> Any:
    """Save until killed."""
    ds = start(zero_stage, seed=1)
    for number in range(1, 10_000):
        step(ds, number)
        save(ds, number)


def open_newest(zero_stage: int, choice: str = "auto") -> Any:
    """Load the newest complete checkpoint, or that one; what it says it is."""
    ds = start(zero_stage, seed=1)
    state = resume_from(ROOT, "sft", choice, ds, "hash")
    return {"step": state.step, "cursor": state.cursor, "engine_steps": ds.global_steps}


def main() -> None:
    distributed.init(timeout_s=300)
    modes: dict[str, Callable[..., Any]] = {f.__name__: f for f in (train, resume, fail, sums, loop, open_newest)}
    global ROOT, DTYPE
    mode, stages, folder, *more = sys.argv[1:]
    result: Any = []
    for stage in stages.split(","):
        ROOT = Path(folder, stage) if "," in stages else Path(folder)
        DTYPE = torch.bfloat16 if stage.endswith("b") else torch.float32
        result.append(modes[mode](int(stage[0]), *more))
    if distributed.is_main():
        print("RESULT " + json.dumps(result if "," in stages else result[0]), flush=True)


if __name__ == "__main__":
    distributed.run(main)
