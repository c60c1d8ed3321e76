"""Qwen2-VL: full attention within each image, boxes from 0 to 1000 between box tokens."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration
from transformers.vision_utils import get_vision_position_ids

from univg_fast.model.families.base import Family, placeholders
from univg_fast.packing.vision import VisionInputs, by_size

CLASSES = (Qwen2VLConfig, Qwen2VLForConditionalGeneration)


def family(config: Any) -> Family:
    vision = config.vision_config
    return Family(
        model_type=config.model_type,
        image_token_id=config.image_token_id,
        banned_token_ids=placeholders(config),
        patch_size=vision.patch_size,
        merge_size=vision.spatial_merge_size,
        temporal_patch_size=vision.temporal_patch_size,
        vision_inputs=partial(vision_inputs, merge_size=vision.spatial_merge_size),
    )


def vision_inputs(grids: np.ndarray, merge_size: int) -> VisionInputs:
    inputs = by_size(grids, merge_size)
    sorted_grids = inputs.grid_thw[np.argsort(grids.prod(-1), kind="stable")]
    return replace(inputs, tensors={"position_ids": get_vision_position_ids(sorted_grids, merge_size)})
