"""Run under torchrun by test_reference.py: LoRA at every ZeRO stage; rank 0 writes a JSON report."""

from __future__ import annotations

import copy
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.append(str(Path(__file__).parents[1]))
from engine_worker import SHARD_EVERYTHING
from tiny import random_group, tiny_model

from univg_fast import distributed
from univg_fast.config import DeepSpeedConfig, OptimConfig
from univg_fast.loss import logprob_head, sft_head
from univg_fast.model import PackedModel
from univg_fast.model.load import freeze_vision
from univg_fast.model.lora import adapters_off, apply_lora
from univg_fast.packing import Row, build_row
from univg_fast.train.engine import make_engine, release, train_step
from univg_fast.train.reference import Reference
from univg_fast.train.zero import declare_head, gathered

OPTIM = OptimConfig(learning_rate=1e-2)


def adapted() -> PackedModel:
    model = tiny_model()
    freeze_vision(model.model)
    apply_lora(model.model, r=4, lora_alpha=8.0, lora_dropout=0.2, modules_to_save=["lm_head"])
    return model


def rows_of(model: PackedModel, count: int) -> list[Row]:
    rng = np.random.default_rng(7)
    grids = [[(8, 4)], [], [(4, 4), (4, 6)]]
    return [build_row([random_group(rng, grids[i % 3], [6])], model.family) for i in range(count)]


def start(model: PackedModel, stage: int) -> Any:
    engine = make_engine(model, OPTIM, DeepSpeedConfig(zero_stage=stage, config=SHARD_EVERYTHING), 10)
    declare_head(model, stage)
    return engine


def weights(model: PackedModel) -> dict[str, torch.Tensor]:
    found = {}
    for name, parameter in model.named_parameters():
        with gathered([parameter]):
            found[name] = parameter.detach().clone()
    return found


def step(engine: Any, rows: list[Row]) -> None:
    result = train_step(engine, (engine(row, sft_head(row, 6.0))[0] for row in rows))
    assert result.applied


def look(stage: int, folder: Path) -> dict[str, Any]:
    """Train, look at the reference, save, train on; and train on from the checkpoint."""
    model = adapted()
    base = copy.deepcopy(tiny_model())
    every = rows_of(model, 3)
    engine = start(model.train(), stage)
    before = weights(model)
    mine = every if stage >= 2 else every[: 1 + distributed.rank()]
    step(engine, mine)
    step(engine, mine)
    after = weights(model)
    moved = [name for name in after if not torch.equal(before[name], after[name])]
    reference = Reference(engine, model, 1.0, "auto", "", stage == 3, partial(adapters_off, model))
    held = every[: 1 + 2 * distributed.rank()]  # one row here, three there
    found = reference.log_probs(held, [None] * len(held), 3, (every[0], None))
    with torch.no_grad():
        want = [base(row, logprob_head(row, 1.0)) for row in held]
        on = [engine(row, logprob_head(row, 1.0)) for row in every][: len(held)]
    engine.save_checkpoint(str(folder), tag="x", save_latest=False, exclude_frozen_parameters=True)
    torch.manual_seed(distributed.rank())  # dropout's; a run's checkpoint holds this state
    step(engine, mine)
    further = weights(model)
    release(engine)

    other = adapted().train()
    with torch.no_grad():
        for parameter in other.parameters():
            if parameter.requires_grad:
                parameter.zero_()
    engine = start(other, stage)
    engine.load_checkpoint(str(folder), tag="x", load_module_strict=False)
    loaded = weights(other)
    torch.manual_seed(distributed.rank())
    step(engine, mine)
    again = weights(other)
    trainable = {name for name, p in other.named_parameters() if p.requires_grad}
    release(engine)
    return {
        "moved": sorted(moved),
        "trainable": sorted(trainable),
        "counts": [len(found), len(held)],
        "reference": all(distributed.gather_objects(all(map(torch.equal, found, want)))),
        "gap": max(distributed.gather_objects(max(float((a - b).abs().max()) for a, b in zip(found, on, strict=True)))),
        "train_mode": model.training,
        "loaded": all(torch.equal(loaded[name], after[name]) for name in after),
        "further": all(torch.equal(again[name], further[name]) for name in after),
        "bytes": sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()),
        "whole": sum(x.numel() * 4 for x in after.values()),
    }


def main() -> None:
    distributed.init(timeout_s=300)
    out = Path(sys.argv[1])
    report = {str(stage): look(stage, out.with_name(f"ckpt{stage}")) for stage in range(4)}
    if distributed.is_main():
        out.write_text(json.dumps(report))


if __name__ == "__main__":
    distributed.run(main)
