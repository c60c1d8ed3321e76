"""What the drop-ins' hosts share here: the hosts of tests/integrations, and a batch of prompts with images."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from univg_fast.model.patches import repeat_frames

from .rollout import IMAGE, PAD, Size, make_samples

ROOT = Path(__file__).resolve().parents[1]
SIZES = {
    "default": Size(prompts=2, group=4, tokens=48, side=14, hidden=256, layers=2, vocab=16_000),
    "tiny": Size(prompts=2, images=1, group=2, tokens=4, side=4, text=20, hidden=64, layers=1, vocab=300),
}


class Step(NamedTuple):
    """One way to make a step. `weights`: what has a gradient after `run`; it is None before."""

    run: Callable[[], torch.Tensor]  # forward and backward; gives the loss
    weights: tuple[torch.Tensor, ...]


def both(step: Callable[[bool], torch.Tensor], model: torch.nn.Module) -> tuple[Step, Step]:
    """(without the drop-in, with it) of one model."""
    weights = tuple(model.parameters())
    return Step(lambda: step(False), weights), Step(lambda: step(True), weights)


def load_host(name: str) -> Any:
    """tests/integrations/hosts/NAME.py; tests are no package. ModuleNotFoundError where its host is not installed."""
    if str(ROOT / "tests") not in sys.path:
        sys.path.append(str(ROOT / "tests"))
    import pytest  # the hosts skip by it

    try:
        return importlib.import_module(f"integrations.hosts.{name}")
    except pytest.skip.Exception as reason:
        raise ModuleNotFoundError(str(reason)) from None


def make_batch(size: Size) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """(what a model takes, [B, tokens] which completion tokens count): prompts padded left, completions right."""
    rng = np.random.default_rng(1)
    samples = [s for s in make_samples(size) for _ in range(size.group)]
    longest = max(len(s.prompt_ids) for s in samples)
    prompts = torch.tensor([[PAD] * (longest - len(s.prompt_ids)) + s.prompt_ids.tolist() for s in samples])
    lengths = torch.from_numpy(rng.integers(size.tokens // 2, size.tokens + 1, len(samples)))
    mask = (torch.arange(size.tokens) < lengths[:, None]).long()
    completions = torch.from_numpy(rng.integers(5, size.vocab, tuple(mask.shape))) * mask + PAD * (1 - mask)
    ids = torch.cat([prompts, completions], 1)
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.cat([(prompts != PAD).long(), mask], 1),
        "mm_token_type_ids": (ids == IMAGE).int(),
        "pixel_values": torch.cat([repeat_frames(torch.from_numpy(s.pixel_values), 2) for s in samples]),
        "image_grid_thw": torch.from_numpy(np.concatenate([s.image_grid_thw for s in samples])),
    }
    return inputs, mask


def make_advantages(size: Size) -> torch.Tensor:
    return torch.randn(size.prompts * size.group, generator=torch.Generator().manual_seed(2))
