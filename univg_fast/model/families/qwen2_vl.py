"""Qwen2-VL: full attention within each image, boxes from 0 to 1000 between box tokens."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration
from transformers.vision_utils import get_vision_position_ids

from univg_fast.model.families.base import Family, common
from univg_fast.packing.vision import VisionInputs, sorted_by_size

CLASSES = (Qwen2VLConfig, Qwen2VLForConditionalGeneration)


def family(config: Any) -> Family:
    """The adapter for one model's config."""
    inputs = partial(vision_inputs, merge_size=config.vision_config.spatial_merge_size)
    return Family(**common(config), vision_inputs=inputs, answer_style="box_tokens")


def vision_inputs(grids: np.ndarray, merge_size: int) -> VisionInputs:
    inputs = sorted_by_size(grids, merge_size)
    return replace(inputs, tensors={"position_ids": get_vision_position_ids(inputs.host["grid_thw"], merge_size)})


SMALL: dict[str, Any] = {
    "text_config": {
        "hidden_size": 192,
        "intermediate_size": 576,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10.0, "mrope_section": [8, 12, 12]},
        "tie_word_embeddings": True,
        "initializer_range": 0.07,
    },
    "vision_config": {
        "depth": 2,
        "embed_dim": 128,
        "hidden_size": 192,
        "num_heads": 4,
        "mlp_ratio": 3,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "initializer_range": 0.07,
    },
    "tie_word_embeddings": True,
    "initializer_range": 0.07,
}
