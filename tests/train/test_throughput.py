"""Model FLOPs against torch's own count of a pass, peaks by name, and rates."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import FAMILIES, random_group, tiny_model
from torch.utils.flop_counter import FlopCounterMode

from univg_fast.config import Config, load_config
from univg_fast.model import PackedModel
from univg_fast.model.load import freeze_vision
from univg_fast.model.lora import apply_lora
from univg_fast.packing import build_row
from univg_fast.structs import Group
from univg_fast.train.rows import size_of
from univg_fast.train.throughput import StepFlops, Throughput, peak_tflops

DEMO = load_config(["--config", "demo"])


def counts_of(groups: list[Group]) -> dict[str, float]:
    """What the metrics of a step with these groups count."""
    sizes = [size_of(group) for group in groups]
    return {
        "group_tokens": sum(size.tokens for size in sizes),
        "attention_pairs": 0.0,  # torch counts those of padded blocks
        "scored_tokens": sum(sum(size.responses) for size in sizes),
        "patches": sum(size.patches for size in sizes),
        "patch_pairs": 0.0,
    }


def counted(model: PackedModel, groups: list[Group], backward: bool) -> float:
    """FLOPs of all products but attention's, as torch counts those that run."""
    row = build_row(groups, model.family, attention=model.attention.face)
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(backward):
        scores = model.hidden(row) @ model.model.lm_head.weight.T
        if backward:
            scores.sum().backward()
    found = counter.get_flop_counts()["Global"]
    return float(sum(n for op, n in found.items() if op in (torch.ops.aten.mm, torch.ops.aten.addmm)))


def windows(model: PackedModel, passes: int, patches: float) -> float:
    """What the formula adds for blocks that attend within windows: known by the patch, not by the pair."""
    seen = model.model.config.vision_config
    whole = len(getattr(seen, "fullatt_block_indexes", range(seen.depth)))
    side = getattr(seen, "window_size", 0) // seen.patch_size
    return 4.0 * seen.hidden_size * (seen.depth - whole) * side**2 * passes * patches if side else 0.0


CASES = [*((family, trains) for family in FAMILIES for trains in ("all", "language")), ("qwen2_vl", "adapters")]


@pytest.mark.parametrize(("family", "trains"), CASES)
def test_products_of_a_step_are_those_that_torch_counts(family: str, trains: str) -> None:
    model = tiny_model(family).train()
    if trains != "all":
        freeze_vision(model.model)
    if trains == "adapters":
        names = ("self_attn.q_proj", "o_proj")
        apply_lora(model.model, r=4, lora_alpha=8.0, lora_dropout=0.0, target_modules=names, modules_to_save=(), seed=0)
    rng, side = np.random.default_rng(0), model.family.patch_size
    groups = [random_group(rng, [(8, 8), (4, 12)], [7], side), random_group(rng, [(4, 4)], [5], side)]
    counts, config = counts_of(groups), replace(DEMO, grpo=replace(DEMO.grpo, beta=0.1, num_iterations=2))
    forward = counted(model, groups, backward=False)
    both = counted(model, groups, backward=True)
    sft = StepFlops.of(model, "sft", config).step(counts) - windows(
        model, 3 if trains == "all" else 1, counts["patches"]
    )
    if trains == "adapters":  # autograd stops at the lowest of them, in layer 1 of few; the formula at the embeddings
        assert both < sft < 1.05 * both
    else:
        assert sft == pytest.approx(both, rel=1e-9)
    if trains == "all":  # the rollout's and the reference's forward pass, and two updates
        grpo = StepFlops.of(model, "grpo", config).step(counts)
        assert grpo == pytest.approx(2 * forward + 2 * both + windows(model, 8, counts["patches"]), rel=1e-9)


def test_attended_pairs_by_hand() -> None:
    """A query by a key, and by its value: 4 FLOPs for each number of a head, and twice that backward."""
    model = tiny_model()
    text, seen = model.model.config.get_text_config(), model.model.config.vision_config
    flops = StepFlops.of(model, "sft", Config())
    assert flops.pair == 3 * 4 * text.hidden_size * text.num_hidden_layers
    assert flops.patch_pair == 3 * 4 * seen.embed_dim * seen.depth
    freeze_vision(model.model)
    assert StepFlops.of(model, "grpo", Config()).patch_pair == 4 * seen.embed_dim * seen.depth  # looked at once
    group = random_group(np.random.default_rng(0), [(4, 4), (2, 6)], [3, 2])
    assert size_of(group).patch_pairs == 16**2 + 12**2


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989.4),
        ("NVIDIA H20", 148.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A10", 125.0),
        ("NVIDIA A100X", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("Quadro P400", None),
        ("cpu", None),
    ],
)
def test_a_peak_is_known_by_the_whole_name_or_not_at_all(name: str, peak: float | None) -> None:
    assert peak_tflops(name, torch.bfloat16) == peak
    assert peak_tflops(name, torch.float32) is None


def test_mfu_is_a_share_of_a_known_peak_only() -> None:
    flops = StepFlops(token=2e9, pair=0.0, target=0.0, patch=0.0, patch_pair=0.0)
    step = counts_of([]) | {"group_tokens": 1000.0}
    assert Throughput(flops, 10.0).figures(step, 0.5)["tflops"] == pytest.approx(4.0)
    assert Throughput(flops, 10.0).figures(step, 0.5)["mfu"] == pytest.approx(0.4)
    assert "mfu" not in Throughput(flops, None).figures(step, 0.5)
