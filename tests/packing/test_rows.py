"""What the host makes of prompts and images: positions as transformers', attention runs that cover every patch once."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import END, FAMILIES, IMAGE, START, VOCAB, WORDS, random_sample
from transformers.vision_utils import get_vision_window_index
from univg_kernels import GrpoConfig
from univg_kernels._row_checks import check_rows

from univg_fast.model import Family, family_of
from univg_fast.model.families import FAMILIES as MODULES
from univg_fast.model.load import small_config
from univg_fast.packing import build_row
from univg_fast.packing.positions import rope_positions
from univg_fast.packing.vision import AttentionRuns, stack_images, without_pixels
from univg_fast.structs import Group

each_family = pytest.mark.parametrize("name", FAMILIES)
SIDES = st.integers(1, 6).map(lambda n: 2 * n)
GRIDS = st.lists(st.tuples(SIDES, SIDES), max_size=8)
PROMPTS = st.lists(st.one_of(st.integers(1, 5), st.tuples(SIDES, SIDES)), min_size=1, max_size=10)


@cache
def model_of(name: str) -> tuple[Any, Family]:
    """A model of transformers without weights, for what it computes from ids and grids."""
    config: Any = small_config(f"{name}_tiny", VOCAB)
    with torch.device("meta"):
        return MODULES[name].CLASSES[1]._from_config(config), family_of(config)


@each_family
@settings(deadline=None)
@given(parts=PROMPTS)
def test_positions_are_those_of_transformers(name: str, parts: list[Any]) -> None:
    """`parts`: numbers of words, and images' grids."""
    model, family = model_of(name)
    ids, grids = [], []
    for part in parts:
        if isinstance(part, tuple):
            ids += [START, *[IMAGE] * (part[0] * part[1] // 4), END]
            grids.append((1, *part))
        else:
            ids += [WORDS[0]] * part
    grid = np.array(grids, np.int64).reshape(-1, 3)
    tokens = torch.tensor(ids)[None]
    types = (tokens == IMAGE).int()
    want, delta = model.model.get_rope_index(
        input_ids=tokens, mm_token_type_ids=types, image_grid_thw=torch.from_numpy(grid)
    )
    positions, following = rope_positions(np.array(ids), grid, family)
    assert np.array_equal(positions, want[:, 0].numpy())
    assert following == len(ids) + int(delta)


def in_runs(runs: AttentionRuns, patches: int) -> list[list[int]]:
    """Which patches attend to each other."""
    order = torch.arange(patches) if runs.order is None else runs.order
    sequences, start = [], 0
    for count, length in runs.runs:
        sequences += order[start : start + count * length].view(count, length).tolist()
        start += count * length
    assert start == patches
    return sequences


@each_family
@settings(deadline=None)
@given(grids=GRIDS.filter(bool))
def test_each_patch_attends_to_its_own_image_and_comes_back(name: str, grids: list[tuple[int, int]]) -> None:
    """Patches carry the number of their image through the tower's own reorderings."""
    _, family = model_of(name)
    grid = np.array([(1, *g) for g in grids], np.int64)
    sizes = grid.prod(-1)
    vision = family.vision_inputs(grid)
    seen = torch.arange(len(grid)).repeat_interleave(torch.from_numpy(sizes))
    if vision.order is not None:
        seen = seen[vision.order]
    if "window_index" in vision.tensors:
        seen = seen.view(-1, 4)[vision.tensors["window_index"]].view(-1)
    images = in_runs(vision.images, len(seen))
    assert sorted(len(image) for image in images) == sorted(sizes.tolist())
    assert all(len(set(seen[image].tolist())) == 1 for image in images)
    if vision.images.order is not None and vision.images.back is not None:
        assert torch.equal(vision.images.order[vision.images.back], torch.arange(len(seen)))
    after = seen.view(-1, 4)[:, 0]  # the merger joins four neighbours of one image
    assert torch.equal(after[:, None].expand(-1, 4), seen.view(-1, 4))
    if "window_index" in vision.tensors:
        after = after[vision.tensors["window_index"].argsort()]
    if vision.back is not None:
        after = after[vision.back]
    assert torch.equal(after, torch.arange(len(grid)).repeat_interleave(torch.from_numpy(sizes // 4)))
    assert vision.image_tokens == tuple(sizes // 4)


@settings(deadline=None)
@given(grids=GRIDS.filter(bool))
def test_windows_are_those_of_transformers(grids: list[tuple[int, int]]) -> None:
    _, family = model_of("qwen2_5_vl")
    grid = np.array([(1, *g) for g in grids], np.int64)
    vision = family.vision_inputs(grid)
    index, ends = get_vision_window_index(torch.from_numpy(grid), 2, 56, 14)
    want = [sorted(part.tolist()) for part in index.split((ends.diff() // 4).tolist())]
    assert vision.windows is not None and vision.windows.order is None
    patches = vision.tensors["window_index"].repeat_interleave(4)
    got = [patches[window].tolist()[::4] for window in in_runs(vision.windows, len(patches))]
    assert sorted(sorted(window) for window in got) == sorted(want)


@each_family
def test_a_row_without_images_has_a_blank_one_of_no_tokens(name: str) -> None:
    _, family = model_of(name)
    sample = random_sample(np.random.default_rng(0), [], patch_size=family.patch_size)
    pixels, vision = stack_images([sample], family)
    assert pixels.shape == (4, family.patch_dim) and not pixels.any() and vision.image_tokens == ()
    row = build_row([Group(sample, (WORDS[:3],))], family)
    assert len(row.image_positions) == 0 and torch.equal(row.pixel_values, pixels)


def test_a_placeholder_in_a_response_is_no_image() -> None:
    _, family = model_of("qwen2_vl")
    sample = random_sample(np.random.default_rng(0), [(4, 4)])
    row = build_row([Group(sample, (np.array([WORDS[0], IMAGE, WORDS[1]]),))], family)
    assert len(row.image_positions) == 4


def test_what_predicts_what() -> None:
    """The prompt's last token predicts the first of each response; each of its tokens the next one."""
    rng, (_, family) = np.random.default_rng(0), model_of("qwen2_vl")
    first, second = random_sample(rng, [(4, 4)]), random_sample(rng, [])
    a, b, c = (rng.choice(WORDS, n) for n in (3, 1, 2))
    row = build_row([Group(first, (a, b)), Group(second, (c,))], family)
    end, start = len(first.prompt_ids) - 1, len(first.prompt_ids) + 4
    last = start + len(second.prompt_ids) - 1
    assert row.target_rows.tolist() == [end, end + 1, end + 2, end, last, last + 1]
    assert row.target_ids.tolist() == [*a, *b, *c]
    assert row.cu_seqlens.tolist() == [0, 3, 4, 6] and row.num_tokens == last + 1 + 2


def test_a_row_on_a_device_leaves_its_lengths_on_the_host() -> None:
    """Where the losses look for them: what depends on whole responses is cut up between these, else nowhere."""
    sample, (_, family) = random_sample(np.random.default_rng(0), []), model_of("qwen2_vl")
    row = build_row([Group(sample, (WORDS[:3], WORDS[:2]))], family).to("meta")
    assert row.target_ids.is_meta and row.input_ids.is_meta
    advantages = torch.empty(2, device="meta")
    rows = check_rows("x", 5, advantages.device, GrpoConfig(), row.cu_seqlens, {"advantages": advantages})
    assert rows.cu_seqlens.is_meta and rows.host_seqlens is not None and rows.host_seqlens.tolist() == [0, 3, 5]


@each_family
def test_a_row_whose_features_are_there_already_makes_nothing_for_the_tower(name: str) -> None:
    family, rng = model_of(name)[1], np.random.default_rng(0)
    samples = [random_sample(rng, grids, patch_size=family.patch_size) for grids in ([(4, 6), (8, 8)], [], [(6, 6)])]
    asked: list[np.ndarray] = []

    def watched(grids: np.ndarray) -> Any:
        asked.append(grids)
        return family.vision_inputs(grids)

    watching = replace(family, vision_inputs=watched)
    full = build_row([Group(sample, ()) for sample in samples], watching)
    assert len(asked) == 1
    row = build_row([Group(sample, ()) for sample in without_pixels(samples)], watching)
    assert len(asked) == 1 and row.pixel_values.shape == (0, family.patch_dim) and not row.vision.image_tokens
    assert torch.equal(row.position_ids, full.position_ids) and torch.equal(row.image_positions, full.image_positions)
