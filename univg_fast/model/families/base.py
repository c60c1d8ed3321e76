"""What a model family is, to the rest of the package: numbers and plain functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from univg_fast.packing.vision import VisionInputs

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def nothing(model: Any) -> None:
    """No edit of the transformers model."""


class Tower(NamedTuple):
    """Numbers of a vision tower that formulas need."""

    depth: int  # blocks
    width: int
    intermediate: int  # of a block's MLP
    whole: int  # blocks that attend within images; the others do so within windows
    window: int = 0  # patches of a window
    levels: int = 1  # vectors that it makes of an image token


@dataclass(frozen=True)
class Family:
    """Numbers of a model's vision side, and how to drive its tower."""

    model_type: str
    image_token_id: int
    banned_token_ids: tuple[int, ...]  # placeholders that must never be sampled
    patch_size: int
    merge_size: int
    temporal_patch_size: int
    vision_inputs: Callable[
        [np.ndarray], VisionInputs
    ]  # [n, 3] int64 grids, n > 0 -> what the tower needs, on the host
    tower: Tower
    projector: tuple[str, ...] = ("merger",)  # the tower's children that map its features to the language model
    prepare: Callable[[Any], None] = nothing  # edits a transformers model once, before rows drive it
    coordinates: str = "norm1000"  # what box numbers in its text mean: "norm1000", or "resized" (pixels)
    answer_style: str = "bbox_2d"  # how it wrote boxes in its own training: a name of data.answer_style
    image_mean: tuple[float, ...] = CLIP_MEAN
    image_std: tuple[float, ...] = CLIP_STD

    @property
    def patch_dim(self) -> int:
        """Numbers of one patch of a still image: its frames are equal, so it holds one."""
        return 3 * self.patch_size**2


def common(config: Any) -> dict[str, Any]:
    """The fields that transformers' configs of all families name alike."""
    vision = config.vision_config
    return {
        "model_type": config.model_type,
        "image_token_id": config.image_token_id,
        "banned_token_ids": (
            config.image_token_id,
            config.video_token_id,
            config.vision_start_token_id,
            config.vision_end_token_id,
        ),
        "patch_size": vision.patch_size,
        "merge_size": vision.spatial_merge_size,
        "temporal_patch_size": vision.temporal_patch_size,
    }


def small(vision: dict[str, Any], **text: Any) -> dict[str, Any]:
    """A config of transformers that trains in minutes: what all families share, and what each has of its own."""
    drawn = {"initializer_range": 0.07}
    rope = {"rope_type": "default", "rope_theta": 10.0, "mrope_section": [8, 12, 12]}
    return {
        "text_config": {
            "hidden_size": 192,
            "intermediate_size": 576,
            "num_hidden_layers": 3,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-6,
            "rope_parameters": rope,
            "tie_word_embeddings": True,
            **drawn,
            **text,
        },
        "vision_config": {
            "num_heads": 4,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            **drawn,
            **vision,
        },
        "tie_word_embeddings": True,
        **drawn,
    }
