"""Run by test_engine.py under torchrun: the same steps at every ZeRO stage; rank 0 writes a JSON report."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch

sys.path.append(str(Path(__file__).parents[1] / "invariants"))
sys.path.append(str(Path(__file__).parents[1]))
from engine_problem import OPTIM, STEPS, TinyLM, batch
from test_no_sync import Operations

from univg_fast import distributed
from univg_fast.config import DeepSpeedConfig
from univg_fast.train import engine

SHARD_EVERYTHING = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
OFFLOAD = {
    "zero_optimization": {"offload_optimizer": {"device": "cpu"}, "stage3_param_persistence_threshold": 0},
    "zero_force_ds_cpu_optimizer": False,  # torch's AdamW
}


def share(rows: list[Any], stage: int) -> list[Any]:
    """Rank 0 takes all rows but one; rank 1 repeats its own with weight 0 where counts must be equal."""
    rank, world = distributed.rank(), distributed.world_size()
    mine = rows if world == 1 else (rows[:-1] if rank == 0 else rows[-1:])
    if stage >= 2:
        passes = int(distributed.reduce_floats({}, {"rows": len(mine)})["rows"])
        mine = mine + [(x, y, 0.0) for x, y, _ in mine[:1]] * (passes - len(mine))
    return mine


def train(
    stage: int,
    module: TinyLM,
    steps: int = STEPS,
    poison: str = "",
    config: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Losses, norms, rates, parameters. `poison`: what is not a number at step 2, in one row of the last rank."""
    printed = StringIO()
    with redirect_stdout(printed):
        deepspeed = DeepSpeedConfig(zero_stage=stage, config=config or SHARD_EVERYTHING)
        ds = engine.make_engine(module, OPTIM, deepspeed, STEPS)
    log: dict[str, Any] = {"loss": [], "grad_norm": [], "applied": [], "learning_rate": [], "stood_still": []}

    def losses(step: int) -> Iterator[torch.Tensor]:
        for number, row in enumerate(share(batch(step), stage)):
            bad = step == 2 and number == 0 and distributed.rank() == distributed.world_size() - 1
            module.breaks_a_gradient = bad and poison == "gradient"
            loss = ds(*row)
            yield loss + float("nan") if bad and poison == "loss" else loss

    for step in range(steps):
        before = parameters(ds.module, stage)
        result = engine.train_step(ds, losses(step)).read()
        log["loss"].append(distributed.reduce_floats({"loss": result.loss})["loss"])
        for key in ("grad_norm", "applied", "learning_rate"):
            log[key].append(getattr(result, key))
        log["stood_still"].append(all(distributed.gather_objects(parameters(ds.module, stage) == before)))
    log["parameters"] = parameters(ds.module, stage)
    log["line"] = printed.getvalue().strip().splitlines()[-1] if distributed.is_main() else ""
    engine.release(ds)
    return log


def reads(stage: int, module: TinyLM) -> list[int]:
    """How often a step reads from the device: while rows run, and in all. DeepSpeed's step does, for the norm."""
    ds = engine.make_engine(module, OPTIM, DeepSpeedConfig(zero_stage=stage, config=SHARD_EVERYTHING), STEPS)
    own, found = ds.step, [0]
    for number in range(2):
        with Operations() as operations:

            def step(operations: Operations = operations) -> None:
                found[0] = sum(operations.seen.values())
                own()

            ds.step = step
            engine.train_step(ds, (ds(*row) for row in share(batch(number), stage)))
    del ds.step
    engine.release(ds)
    return [*found, sum(operations.seen.values())]


def parameters(module: torch.nn.Module, stage: int) -> list[float]:
    import deepspeed

    gather = deepspeed.zero.GatheredParameters(list(module.parameters())) if stage == 3 else nullcontext()
    with gather:
        return torch.cat([p.detach().float().flatten() for p in module.parameters()]).tolist()


def main() -> None:
    distributed.init(timeout_s=300)
    report: dict[str, Any] = {
        "plain": {},
        "poisoned": {},
        "second_engine": {},
        "bfloat16": {},
        "offload": {},
        "reads": {},
    }
    for stage in range(4):
        module = TinyLM()
        report["plain"][stage] = train(stage, module)
        report["reads"][f"{stage}-float32"] = reads(stage, TinyLM())
        report["second_engine"][stage] = train(stage, module, steps=2)
        for poison in ("loss", "gradient"):
            report["poisoned"][f"{stage}-{poison}-float32"] = train(stage, TinyLM(), poison=poison)
        if stage > 0:
            report["reads"][f"{stage}-bfloat16"] = reads(stage, TinyLM().to(torch.bfloat16))
            half = TinyLM().to(torch.bfloat16)
            report["bfloat16"][stage] = train(stage, half)
            for poison in ("loss", "gradient"):
                for name, module in (("float32", TinyLM()), ("bfloat16", TinyLM().to(torch.bfloat16))):
                    found = train(stage, module, poison=poison, config=OFFLOAD)
                    report["poisoned"][f"{stage}-{poison}-{name}-offload"] = found
                found = train(stage, TinyLM().to(torch.bfloat16), poison=poison)
                report["poisoned"][f"{stage}-{poison}-bfloat16"] = found
            report["offload"][f"{stage}"] = train(stage, TinyLM(), config=OFFLOAD)
    if distributed.is_main():
        with open(sys.argv[1], "w") as file:
            json.dump(report, file)


if __name__ == "__main__":
    distributed.run(main)
