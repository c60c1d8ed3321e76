"""Qwen3-VL: learned positions in the tower, features of several of its layers added to the first text layers."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from types import MethodType
from typing import Any

import numpy as np
import torch
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.vision_utils import get_vision_interpolation_indices_and_weights, get_vision_position_ids

from univg_fast.model.families.base import Family, Tower, common, small
from univg_fast.packing.vision import VisionInputs, sorted_by_size

CLASSES = (Qwen3VLConfig, Qwen3VLForConditionalGeneration)
HALF = (0.5, 0.5, 0.5)


def family(config: Any) -> Family:
    """The adapter for one model's config."""
    vision = config.vision_config
    inputs = partial(
        vision_inputs,
        merge_size=vision.spatial_merge_size,
        side=int(vision.num_position_embeddings**0.5),
    )
    tower = Tower(
        vision.depth,
        vision.hidden_size,
        vision.intermediate_size,
        whole=vision.depth,
        levels=1 + len(vision.deepstack_visual_indexes),
    )
    return Family(
        **common(config),
        vision_inputs=inputs,
        tower=tower,
        projector=("merger", "deepstack_merger_list"),
        prepare=add_by_index,
        image_mean=HALF,
        image_std=HALF,
    )


def add_by_index(model: Any) -> None:
    """Let the text model take image tokens as indices: a mask makes the host wait for the device in each such layer."""
    language = model.model.language_model
    language._deepstack_process = MethodType(_deepstack, language)


def _deepstack(self: Any, hidden: torch.Tensor, images: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """[1, T, H] with `features` [M, H] added at `images`: indices [M], or transformers' own mask [1, T]."""
    if images.dtype == torch.bool:
        return type(self)._deepstack_process(self, hidden, images, features)
    return hidden.index_add(1, images, features.to(hidden.dtype)[None])


def vision_inputs(grids: np.ndarray, merge_size: int, side: int) -> VisionInputs:
    inputs = sorted_by_size(grids, merge_size)
    grid_thw = inputs.host["grid_thw"]
    indices, weights = get_vision_interpolation_indices_and_weights(
        grid_thw, side, mode="bilinear", align_corners=True, spatial_merge_size=merge_size
    )
    return replace(
        inputs,
        tensors={
            "position_ids": get_vision_position_ids(grid_thw, merge_size),
            "interp_indices": indices,
            "interp_weights": weights,
        },
    )


WIDTHS = {"hidden_size": 128, "out_hidden_size": 192, "intermediate_size": 384}
ROPE = {"rope_type": "default", "rope_theta": 10.0, "mrope_section": [12, 10, 10], "mrope_interleaved": True}
TOWER = {"depth": 3, **WIDTHS, "patch_size": 16, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
SMALL = small(TOWER, head_dim=64, rope_parameters=ROPE)
