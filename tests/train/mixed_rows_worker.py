"""Run by test_mixed_rows.py: steps in which one rank's row has images and another's none; rank 0 writes a report."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from univg_fast import distributed
from univg_fast.config import DeepSpeedConfig, OptimConfig
from univg_fast.loss import sft_head
from univg_fast.packing import build_row
from univg_fast.train import engine
from univg_fast.train.zero import declare_head

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import random_group, tiny_model  # noqa: E402

EVERYTHING = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
OPTIM = OptimConfig(learning_rate=1e-3, max_grad_norm=0.0, adam_epsilon=1e-3)
# of each step, of each of two rows: images and responses. The last step has no images at all.
STEPS = [([(4, 4), (4, 6)], []), ([], [(6, 4)]), ([], [])]


def train(stage: int, frozen: bool) -> dict[str, list[float]]:
    """Losses and gradient norms."""
    rng, model = np.random.default_rng(0), tiny_model("qwen3_vl").train()
    model.model.model.visual.requires_grad_(not frozen)
    ds: Any = engine.make_engine(model, OPTIM, DeepSpeedConfig(zero_stage=stage, config=EVERYTHING), len(STEPS))
    declare_head(model, stage)
    log: dict[str, list[float]] = {"loss": [], "grad_norm": []}
    for images in STEPS:
        rows = [
            build_row([random_group(rng, list(grids), [4], model.family.patch_size)], model.family) for grids in images
        ]
        mine = rows[distributed.rank() :: distributed.world_size()]
        result = engine.train_step(ds, (ds(row, sft_head(row, 8.0))[0] for row in mine)).read()
        log["loss"].append(distributed.reduce_floats({"loss": result.loss})["loss"])
        log["grad_norm"].append(result.grad_norm)
    engine.release(ds)
    return log


def main() -> None:
    distributed.init(timeout_s=300)
    stages = [(0, False), (0, True)]
    if distributed.world_size() > 1:
        stages += [(2, False), (3, False), (3, True)]
    report = {f"{stage} {frozen}": train(stage, frozen) for stage, frozen in stages}
    if distributed.is_main():
        Path(sys.argv[1]).write_text(json.dumps(report))


if __name__ == "__main__":
    distributed.run(main)
