"""The vision tower: once for all images, one frame of each, and in rows without images."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import FAMILIES, WORDS, random_group, random_sample, tiny_model

from univg_fast.model import ImageFeatures, PackedModel
from univg_fast.packing import Row, build_row
from univg_fast.packing.vision import stack_images
from univg_fast.structs import Group, Sample
from univg_fast.train.rows import Builder

GRIDS = [[(8, 8), (4, 6)], [], [(8, 8), (6, 10), (2, 2)]]
each_family = pytest.mark.parametrize("family", FAMILIES)


def samples_of(model: PackedModel) -> list[Sample]:
    rng = np.random.default_rng(5)
    return [random_sample(rng, grids, f"u{i}", model.family.patch_size) for i, grids in enumerate(GRIDS)]


def encode(model: PackedModel, samples: list[Sample]) -> ImageFeatures:
    pixels, vision = stack_images(samples, model.family)
    return model.encode_images(pixels, vision)


def tensors(features: ImageFeatures) -> list[torch.Tensor]:
    return [features.pooled, *features.levels]


@each_family
def test_images_encoded_once_give_the_same_row(family: str) -> None:
    model = tiny_model(family)
    row = build_row([Group(s, (WORDS[:4], WORDS[3:5])) for s in samples_of(model)], model.family)
    assert torch.equal(model.hidden(row), model.hidden(row, model.encode_images(row.pixel_values, row.vision)))


@each_family
def test_features_of_a_step_are_each_samples_own(family: str) -> None:
    """Encoded together, split by sample, put together in another order: what that order's row encodes by itself."""
    model, merged = tiny_model(family), 4
    samples = samples_of(model)
    with torch.no_grad():
        together = encode(model, samples)
    parts = together.split([int(s.image_grid_thw.prod(-1).sum()) // merged for s in samples])
    for sample, part in zip(samples, parts, strict=True):
        for got, want in zip(tensors(part), tensors(encode(model, [sample])), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    row = build_row([Group(samples[i], (WORDS[:3],)) for i in (2, 0, 1)], model.family)
    got = model.hidden(row, ImageFeatures.cat([parts[i] for i in (2, 0, 1)]))
    torch.testing.assert_close(got, model.hidden(row), rtol=1e-5, atol=2e-5)
    assert len(together.levels) == (2 if family == "qwen3_vl" else 0)


@each_family
def test_images_come_back_in_the_order_given(family: str) -> None:
    model = tiny_model(family)
    first, _, last = samples_of(model)
    both, swapped = encode(model, [first, last]), encode(model, [last, first])
    count = int(first.image_grid_thw.prod(-1).sum()) // 4
    for one, other in zip(tensors(both), tensors(swapped), strict=True):
        torch.testing.assert_close(one, torch.cat([other[-count:], other[:-count]]), rtol=1e-5, atol=1e-5)


def outcome(model: PackedModel, row: Row) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    hidden = model.hidden(row)
    (hidden * torch.linspace(-1, 1, hidden.numel()).view_as(hidden)).sum().backward()
    return hidden.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@each_family
def test_one_frame_stands_for_its_copies(family: str) -> None:
    """`fold_frames` on and off: equal to rounding, also in what each half of the patch embedding learns."""
    folded, whole = tiny_model(family), tiny_model(family)
    whole.fold_frames = False
    row = build_row(
        [random_group(np.random.default_rng(1), g, [4], folded.family.patch_size) for g in GRIDS], whole.family
    )
    got, grads = outcome(folded, row)
    want, want_grads = outcome(whole, row)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=2e-5)
    for name, grad in want_grads.items():
        assert (grads[name] - grad).norm() <= 1e-5 * grad.norm(), name
    weight = grads["model.model.visual.patch_embed.proj.weight"]
    assert weight.shape[2] == 2 and torch.equal(weight[:, :, 0], weight[:, :, 1])


@each_family
def test_pixels_may_come_in_the_tower_s_dtype(family: str) -> None:
    """Rounded on the host or by the tower: features and gradients are equal to the last bit."""
    model = tiny_model(family).to(torch.bfloat16)
    groups = [random_group(np.random.default_rng(1), g, [4], model.family.patch_size) for g in GRIDS]
    rows = [build_row(groups, model.family), Builder.of(model).row(groups)]
    assert [row.pixel_values.dtype for row in rows] == [torch.float32, torch.bfloat16]
    (look,) = Builder.of(model).images([g.sample for g in groups], 10**6)
    assert torch.equal(look.pixels, rows[1].pixel_values)
    found = []
    for row in rows:
        model.zero_grad()
        found.append(outcome(model, row))
    (want, want_grads), (got, grads) = found
    assert torch.equal(got, want) and all(torch.equal(grads[name], grad) for name, grad in want_grads.items())
    assert Builder.of(tiny_model(family)).row(groups).pixel_values.dtype == torch.float32


def runs_of_the_tower(model: PackedModel) -> list[int]:
    """Grows by one entry with each pass through the vision tower."""
    seen: list[int] = []
    model.model.model.visual.register_forward_hook(lambda *_: seen.append(1))
    return seen


@each_family
def test_a_tower_that_trains_takes_part_in_a_row_without_images(family: str) -> None:
    """Its gradients are 0 then, not None: every rank reduces the same parameters."""
    model = tiny_model(family)
    seen = runs_of_the_tower(model)
    row = build_row([random_group(np.random.default_rng(1), [], [3, 2], model.family.patch_size)], model.family)
    _, grads = outcome(model, row)
    tower = [n for n, _ in model.named_parameters() if ".visual." in n]
    assert len(seen) == 1 and grads.keys() >= set(tower) and not any(grads[n].any() for n in tower)
    model.model.model.visual.requires_grad_(False)
    with torch.no_grad():
        frozen = model.hidden(row)
    assert len(seen) == 1
    for parameter in model.model.model.visual.parameters():
        parameter.ds_id = 0  # what ZeRO 3 marks parameters with that it gathers on all ranks at once
    assert torch.equal(model.hidden(row), frozen) and len(seen) == 2


@each_family
def test_features_that_are_given_spare_the_tower(family: str) -> None:
    model = tiny_model(family)
    features, seen = encode(model, samples_of(model)), runs_of_the_tower(model)
    model.hidden(build_row([Group(s, (WORDS[:2],)) for s in samples_of(model)], model.family), features)
    assert seen == []


def test_windows_matter() -> None:
    """The control: full attention in a block that has windows gives other features."""
    model = tiny_model("qwen2_5_vl")
    before = encode(model, samples_of(model)).pooled
    blocks: Any = model.model.model.visual.blocks
    assert [block.attn.windowed for block in blocks] == [True, False, True]
    blocks[0].attn.windowed = False
    assert (encode(model, samples_of(model)).pooled - before).abs().max() > 1e-2


def test_levels_matter() -> None:
    """The control: without the tower's other layers the text model says something else."""
    model = tiny_model("qwen3_vl")
    row = build_row([Group(s, (WORDS[:2],)) for s in samples_of(model)], model.family)
    features = model.encode_images(row.pixel_values, row.vision)
    moved = model.hidden(row, features) - model.hidden(row, replace(features, levels=()))
    assert moved.abs().max() > 1e-2


def test_levels_are_added_as_transformers_adds_them() -> None:
    """By index to the last bit what a mask gives, in value and gradient."""
    language: Any = tiny_model("qwen3_vl").model.model.language_model
    hidden, features = torch.randn(1, 9, 192, requires_grad=True), torch.randn(4, 192, requires_grad=True)
    positions = torch.tensor([1, 2, 5, 8])
    mask = torch.zeros(1, 9, dtype=torch.bool).index_fill(1, positions, True)
    results = []
    for images in (positions, mask):
        out = language._deepstack_process(hidden, images, features)
        results.append([out, *torch.autograd.grad((out * torch.arange(192)).sum(), [hidden, features])])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
