"""A small random model and random groups, shared by the model, rollout and invariant tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import peft
import torch

from univg_fast.model import PackedModel, load_model
from univg_fast.structs import Group, Record, Sample, Target

SPECIAL = [
    "<|endoftext|>",
    "<|im_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<|vision_start|>",
    "<|vision_end|>",
]
VOCAB = {token: i for i, token in enumerate(SPECIAL + [f"w{i}" for i in range(94)])}
IMAGE, START, END = (VOCAB[f"<|{name}|>"] for name in ("image_pad", "vision_start", "vision_end"))
WORDS = np.arange(len(SPECIAL), len(VOCAB))


FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")  # every test of the model runs for each of them


def tiny_model(family: str = "qwen2_vl", seed: int = 0, noise: float = 0.05) -> PackedModel:
    """Random weights, biases and norms perturbed too, so that every part of the model matters."""
    model = load_model(f"{family}_tiny", vocab=VOCAB, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data.add_(noise * torch.randn(parameter.shape, generator=generator))
    return PackedModel(model).eval()


def random_sample(
    rng: np.random.Generator, grids: list[tuple[int, int]], uid: str = "u", patch_size: int = 14
) -> Sample:
    """A prompt with images of these (height, width) in patches and a few words between."""
    ids = [VOCAB["<|endoftext|>"]]
    for height, width in grids:
        ids += [START, *[IMAGE] * (height * width // 4), END, *rng.choice(WORDS, rng.integers(0, 3))]
    ids += [*rng.choice(WORDS, rng.integers(2, 9))]
    grid = np.array([(1, h, w) for h, w in grids], np.int64).reshape(-1, 3)
    pixels = rng.standard_normal((int(grid.prod(-1).sum()), 3 * patch_size**2)).astype(np.float32)
    record = Record(uid, "tests:1", (), "question", targets=(Target((0, 0, 500, 500)),))
    sizes = tuple((patch_size * w, patch_size * h) for h, w in grids)
    return Sample(record, np.array(ids, np.int64), grid, pixels, sizes)


def random_group(
    rng: np.random.Generator, grids: list[tuple[int, int]], lengths: list[int], patch_size: int = 14
) -> Group:
    sample = random_sample(rng, grids, patch_size=patch_size)
    return Group(sample, tuple(rng.choice(WORDS, n).astype(np.int64) for n in lengths))


def add_adapters(model: PackedModel) -> Any:
    """LoRA on the language model, with weights that matter. -> peft's wrapper; `model` has them from now on."""
    names = r".*language_model\.layers\..*\.(q|k|v|o|gate|up|down)_proj"
    wrapped = peft.get_peft_model(model.model, peft.LoraConfig(r=4, target_modules=names))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return wrapped
