"""Qwen2-VL: full attention within each image, boxes from 0 to 1000 between box tokens."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration
from transformers.vision_utils import get_vision_position_ids

from univg_fast.model.families.base import Family, Tower, common, small
from univg_fast.packing.vision import VisionInputs, sorted_by_size

CLASSES = (Qwen2VLConfig, Qwen2VLForConditionalGeneration)


def family(config: Any) -> Family:
    """The adapter for one model's config."""
    vision = config.vision_config
    inputs = partial(vision_inputs, merge_size=vision.spatial_merge_size)
    tower = Tower(vision.depth, vision.embed_dim, int(vision.embed_dim * vision.mlp_ratio), whole=vision.depth)
    return Family(**common(config), vision_inputs=inputs, tower=tower, answer_style="box_tokens")


def vision_inputs(grids: np.ndarray, merge_size: int) -> VisionInputs:
    inputs = sorted_by_size(grids, merge_size)
    return replace(inputs, tensors={"position_ids": get_vision_position_ids(inputs.host["grid_thw"], merge_size)})


SMALL = small({"depth": 2, "embed_dim": 128, "hidden_size": 192, "mlp_ratio": 3})
