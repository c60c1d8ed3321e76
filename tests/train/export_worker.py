"""Run by test_export.py under torchrun: `export_worker.py FOLDER` leaves FOLDER/CASE with what was exported how.

base: the model before; logits.pt: those of the trained module; whole, adapters: exports of the engine's model;
from_checkpoint: of a checkpoint, without an engine; sharded: whole again, in several files.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

sys.path.append(str(Path(__file__).parents[1]))
from engine_worker import SHARD_EVERYTHING
from tiny import random_group, tiny_model

from univg_fast import distributed
from univg_fast.config import DeepSpeedConfig, OptimConfig, SaveConfig
from univg_fast.data.samples import make_processor
from univg_fast.data.tokenizer import build_tokenizer
from univg_fast.loss import sft_head
from univg_fast.model import PackedModel, load_model
from univg_fast.model.lora import apply_lora
from univg_fast.packing import build_row
from univg_fast.train import checkpoint
from univg_fast.train.engine import make_engine, release, train_step
from univg_fast.train.export import export, write_model
from univg_fast.train.export_run import fill
from univg_fast.train.state import StageState
from univg_fast.train.zero import declare_head

TOKENS = torch.tensor([[0, 7, 8, 9, 10, 11, 12]])
OPTIM = OptimConfig(learning_rate=1e-2, lr_scheduler_type="constant")


def load(base: Path, adapters: bool) -> PackedModel:
    model = PackedModel(load_model(str(base)))
    model.model.model.visual.requires_grad_(False)
    if adapters:
        apply_lora(model.model, r=4, lora_alpha=8.0)
    return model


def run(case: Path, family: str, zero_stage: int, adapters: bool, tied: bool = True) -> None:
    base, processor = case / "base", make_processor(build_tokenizer(["x"]))
    if distributed.is_main():
        model = tiny_model(family).model
        if not tied:
            model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() * 1.5)
            model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = False
        model.save_pretrained(base)
    distributed.barrier()
    model = load(base, adapters).train()
    engine = make_engine(model, OPTIM, DeepSpeedConfig(zero_stage=zero_stage, config=SHARD_EVERYTHING), 2)
    declare_head(model, zero_stage)
    rng = np.random.default_rng(distributed.rank())
    for _ in range(2):  # LoRA's first step moves only one of each pair
        row = build_row([random_group(rng, [(4, 4)], [4], model.family.patch_size)], model.family)
        train_step(engine, [engine(row, sft_head(row, 8.0))[0]])
    checkpoint.save(case / "ckpt", "sft", StageState(step=2), engine, "hash", SaveConfig(), must=True)
    export(model, processor, case / "whole")
    (case / "sharded").mkdir(exist_ok=True)
    distributed.barrier()
    write_model(model, case / "sharded", max_bytes=100_000)
    if adapters:
        export(model, processor, case / "adapters", adapters_for=str(base))
    model.model.set_attn_implementation("sdpa")  # of a plain forward pass
    with torch.no_grad():
        logits = model.eval().model(input_ids=TOKENS).logits
    if distributed.is_main():
        torch.save(logits, case / "logits.pt")
    release(engine)
    again = load(base, adapters)
    fill(again, case / "ckpt" / "sft_000002")
    export(again, processor, case / "from_checkpoint", adapters_for=str(base) if adapters else None)


def main() -> None:
    distributed.init(timeout_s=300)
    folder = Path(sys.argv[1])
    run(folder / "1", "qwen2_vl", 1, False)
    run(folder / "3", "qwen3_vl", 3, False, tied=False)
    run(folder / "1_lora", "qwen2_5_vl", 1, True)
    run(folder / "3_lora", "qwen2_vl", 3, True)


if __name__ == "__main__":
    distributed.run(main)
