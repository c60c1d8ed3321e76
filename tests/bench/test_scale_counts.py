"""What bench/scale_counts.py says is moved, counted in a layer's passes and in DeepSpeed's own steps."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.rollout import Size, make_model, make_samples
from bench.scale_counts import BACKWARD, FORWARD, MOVED
from tests.bench.traffic import Traffic
from univg_fast.packing import build_row
from univg_fast.structs import Group

PRODUCTS = ("mm", "addmm", "_scaled_dot_product_flash_attention_for_cpu")
PRODUCTS += ("_scaled_dot_product_flash_attention_for_cpu_backward",)


def numbers_of_passes(size: Size) -> tuple[float, float]:
    """Read and written a token, forward and backward, of all layers and what is around them."""
    model, _ = make_model(size, torch.device("cpu"))
    model.model.model.visual.requires_grad_(False)
    (sample,) = make_samples(size)
    responses = tuple(np.arange(5, 5 + size.tokens) for _ in range(size.group))
    row = build_row([Group(sample, responses)], model.family, attention=model.attention.face)
    with torch.no_grad():
        features = model.encode_images(row.pixel_values, row.vision)
    with Traffic() as forward:
        states = model.states(row, features)
    with Traffic() as backward:
        states.sum().backward()
    return tuple(each.total(PRODUCTS) / 4 / row.num_tokens for each in (forward, backward))  # type: ignore[return-value]


def test_what_a_layer_moves_beside_its_products() -> None:
    hidden = 256
    size = Size(prompts=1, images=1, side=8, group=4, tokens=16, vocab=300, hidden=hidden, layers=1)
    one, three = numbers_of_passes(size), numbers_of_passes(replace(size, layers=3))
    for way, few, many in zip((FORWARD, BACKWARD), one, three, strict=True):
        said = way.hidden * hidden + way.intermediate * 3 * hidden  # as wide as bench.rollout makes it
        assert (many - few) / 2 == pytest.approx(said, rel=0.05), way


@pytest.mark.parametrize("ranks", [0, 2], ids=["one rank", "two ranks"])
def test_what_deepspeed_moves(ranks: int, python_launcher: Callable[..., Any]) -> None:
    done = python_launcher(str(Path(__file__).with_name("traffic.py")), ranks=ranks)
    assert done.returncode == 0, done.stderr
    counted = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    for zero, of in MOVED.items():
        found = counted[str(zero)]
        step = of.step + of.share / max(ranks, 1) + (of.mean if ranks else 0)
        assert found["step"] == pytest.approx(step, abs=0.1), zero
        assert found["row"] == pytest.approx(of.row + of.row_share / max(ranks, 1), abs=0.1), zero
