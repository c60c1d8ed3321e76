"""Qwen2.5-VL: most blocks of the tower attend within windows, and boxes are pixels of the resized image.

The tower reorders its tokens by `window_index` itself. Any order that keeps windows together will do: from small to
large ones they are runs already, and only the few full blocks gather each image's patches.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

from univg_fast.model.families.base import Family, Tower, common, small
from univg_fast.packing.vision import AttentionRuns, VisionInputs, gather_blocks, one_sequence, permutation, runs_of

CLASSES = (Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration)


def family(config: Any) -> Family:
    """The adapter for one model's config."""
    vision = config.vision_config
    inputs = partial(
        vision_inputs,
        merge_size=vision.spatial_merge_size,
        patch_size=vision.patch_size,
        window_size=vision.window_size,
    )
    tower = Tower(
        vision.depth,
        vision.hidden_size,
        vision.intermediate_size,
        whole=len(vision.fullatt_block_indexes),
        window=(vision.window_size // vision.patch_size) ** 2,
    )
    return Family(**common(config), vision_inputs=inputs, tower=tower, prepare=mark_windows, coordinates="resized")


def mark_windows(model: Any) -> None:
    """Tell the registered attention which blocks attend within windows."""
    visual = model.model.visual
    for index, block in enumerate(visual.blocks):
        block.attn.windowed = index not in visual.fullatt_block_indexes


def vision_inputs(grids: np.ndarray, merge_size: int, patch_size: int, window_size: int) -> VisionInputs:
    grid_thw, unit = torch.from_numpy(grids), merge_size**2
    window_index, cu_windows = get_vision_window_index(grid_thw, merge_size, window_size, patch_size)
    patches = np.diff(cu_windows.numpy())
    small_first = np.argsort(patches, kind="stable")
    tokens = window_index.numpy()[gather_blocks(patches // unit, small_first)]
    image_tokens = grids.prod(-1) // unit
    # for the full blocks: each image's patches together, images from small to large
    rank = np.argsort(np.argsort(image_tokens, kind="stable"))
    by_image = np.argsort(np.repeat(rank, image_tokens)[tokens], kind="stable")
    by_image = (by_image[:, None] * unit + np.arange(unit)).reshape(-1)
    host = one_sequence(grids)
    return VisionInputs(
        image_tokens=tuple(int(n) for n in image_tokens),
        images=AttentionRuns(runs_of(image_tokens * unit), *permutation(by_image)),
        windows=AttentionRuns(runs_of(patches)),
        host={**host, "cu_window_seqlens": host["cu_seqlens"]},
        tensors={
            "window_index": torch.from_numpy(tokens),
            "position_ids": get_vision_position_ids(grid_thw, merge_size),
        },
    )


WIDTHS = {"hidden_size": 128, "out_hidden_size": 192, "intermediate_size": 384}
SMALL = small({"depth": 3, **WIDTHS, "window_size": 56, "fullatt_block_indexes": [1]})
