"""A shared row scored under ZeRO 3, against the same model unwrapped: torchrun zero3_worker.py, prints {"worst": …}."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import deepspeed
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # tests
from deepspeed.utils import safe_get_full_grad
from integrations.hosts.models import plain_model
from tiny import random_sample

from univg_fast.integrations.heads import scoring
from univg_fast.integrations.patching import Patch
from univg_fast.integrations.prefix import Batch, attending, patch_attention, share_prompts


def batch(rank: int) -> tuple[torch.Tensor, int, dict[str, torch.Tensor]]:
    """Another prompt, with other images and another number of completions, on each rank."""
    rng, count = np.random.default_rng(rank), 2 + rank
    sample = random_sample(rng, [(4, 6), (4, 4)][: 1 + rank])
    prompts = torch.from_numpy(sample.prompt_ids).repeat(count, 1)
    ids = torch.cat([prompts, torch.from_numpy(rng.integers(6, 100, (count, 5)))], 1)
    pixels = torch.from_numpy(sample.pixel_values).view(-1, 3, 1, 196).expand(-1, -1, 2, -1).flatten(1)
    grids = torch.from_numpy(sample.image_grid_thw)
    return ids, prompts.shape[1], {"pixel_values": pixels.repeat(count, 1), "image_grid_thw": grids.repeat(count, 1)}


def loss_of(model: Any, rank: int) -> torch.Tensor:
    ids, length, images = batch(rank)
    pixels, grids = images.values()
    row = share_prompts(model, Batch(ids, torch.ones_like(ids).bool(), length, [list(range(len(ids)))], grids))
    with attending(model, row.layout), scoring(model, row.rows, row.token_ids, 0.9):
        scored = model(**row.inputs, **row.pixels(pixels)).logits
    return scored.sin().sum()


def main() -> None:
    deepspeed.init_distributed("gloo")
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    model = plain_model()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    plain = copy.deepcopy(model)
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "optimizer": {"type": "SGD", "params": {"lr": 0.0}},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
    }
    engine, *_ = deepspeed.initialize(model=model, model_parameters=list(model.parameters()), config=config)
    assert engine.module.lm_head.weight.numel() == 0, "the embedding is to be in parts"
    with Patch() as patch:
        for each in (plain, engine):
            patch_attention(patch, each)
        expected, found = loss_of(plain, rank), loss_of(engine, rank)
        expected.backward()
        engine.backward(found)
    worst = abs(found.item() - expected.item()) / abs(expected.item())
    for theirs, ours in zip(plain.parameters(), engine.module.parameters(), strict=True):
        whole = safe_get_full_grad(ours)
        mean = torch.zeros_like(whole) if theirs.grad is None else theirs.grad / world
        torch.distributed.all_reduce(mean)
        worst = max(worst, ((whole - mean).abs().max() / mean.abs().max().clamp(min=1e-3)).item())
    if rank == 0:
        print(json.dumps({"worst": worst}))


if __name__ == "__main__":
    main()
