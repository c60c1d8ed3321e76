"""A small VLMGRPOTrainer (hosts/vlm_r1.py) on prompts with images, and what its training gives."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from integrations.hosts.models import plain_model
from integrations.hosts.vlm_r1 import GRPOConfig, VLMGRPOTrainer
from tiny import random_sample
from torch import Tensor
from transformers import TrainerCallback

from univg_fast.integrations import vlm_r1

IMAGES = {"one image": [(4, 6)], "three images": [(4, 4), (6, 4), (2, 8)], "text": []}


def iou_reward(completions: list[list[int]], **_: Any) -> list[float]:
    """Some number of a completion between 0 and 1."""
    return [(7 * sum(ids) % 101) / 101 for ids in completions]


def length_reward(completions: list[list[int]], **_: Any) -> list[float]:
    return [len(ids) / 6 for ids in completions]


def make_trainer(folder: Path, family: str = "qwen2_vl", kind: str = "three images", **settings: Any) -> Any:
    model = plain_model(family)
    rng, patch, data = np.random.default_rng(0), model.config.vision_config.patch_size, []
    for _ in range(4):
        sample = random_sample(rng, IMAGES[kind], patch_size=patch)
        pixels = torch.from_numpy(sample.pixel_values)
        frames = pixels.view(len(pixels), 3, 1, patch**2).expand(-1, -1, 2, -1).reshape(-1, 6 * patch**2)
        images = {"pixel_values": frames, "image_grid_thw": torch.from_numpy(sample.image_grid_thw)}
        data.append({"prompt": sample.prompt_ids.tolist()} | (images if IMAGES[kind] else {}))
    own = {
        "per_device_train_batch_size": 8,
        "max_steps": 2,
        "learning_rate": 1e-4,
        "optim": "sgd",
        "seed": 3,
        "suppress_tokens": (2, 3, 4, 5),
    }
    own |= {
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "lr_scheduler_type": "constant",
    }
    own |= {"remove_unused_columns": False, "max_grad_norm": 0.0, "output_dir": str(folder), "disable_tqdm": True}
    return VLMGRPOTrainer(model, [iou_reward, length_reward], GRPOConfig(**(own | settings)), data)


class Gradients(TrainerCallback):
    def __init__(self) -> None:
        self.found: list[dict[str, Tensor]] = []

    def on_pre_optimizer_step(self, *_: Any, model: Any, **__: Any) -> None:
        self.found.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})


def train(trainer: Any, **settings: Any) -> tuple[list[dict[str, float]], list[dict[str, Tensor]]]:
    """What was logged, and the gradients of each optimizer step; with the drop-in where settings are given."""
    gradients = Gradients()
    trainer.add_callback(gradients)
    with vlm_r1.patch(trainer, **settings) if settings else contextlib.nullcontext():
        trainer.train()
    return trainer.state.log_history[:-1], gradients.found


def assert_same(ours: Any, theirs: Any) -> None:
    assert [log.keys() for log in ours[0]] == [log.keys() for log in theirs[0]]
    for mine, other in zip(ours[0], theirs[0], strict=True):
        assert mine == pytest.approx(other, rel=1e-5, abs=1e-6)
    for mine, other in zip(ours[1], theirs[1], strict=True):
        assert mine.keys() == other.keys()
        for name in mine:
            assert (mine[name] - other[name]).norm() <= 1e-5 * max(other[name].norm().item(), 1e-3), name
