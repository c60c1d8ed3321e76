"""What a model family is, to the rest of the package: numbers and plain functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from univg_fast.packing.vision import VisionInputs


def nothing(model: Any) -> None:
    """A family that needs no edit of its transformers model."""


@dataclass(frozen=True)
class Family:
    """Numbers of a model's vision side, and how to drive its tower."""

    model_type: str
    image_token_id: int
    banned_token_ids: tuple[int, ...]  # placeholders that must never be sampled
    patch_size: int
    merge_size: int
    temporal_patch_size: int
    vision_inputs: Callable[[np.ndarray], VisionInputs]  # [n, 3] int64 grids -> what the tower needs, on the host
    prepare: Callable[[Any], None] = nothing  # edits a transformers model once, before it is driven by rows
    coordinates: str = "norm1000"  # what the box numbers in its text mean: "norm1000", or "resized" (pixels)
    answer_style: str = "box_tokens"  # how it wrote boxes in its own training: a style of data.answer_style

    @property
    def patch_dim(self) -> int:
        """Numbers of one patch."""
        return 3 * self.temporal_patch_size * self.patch_size**2


def placeholders(config: Any) -> tuple[int, ...]:
    """Ids that stand for images and videos in a prompt."""
    return (
        config.image_token_id,
        config.video_token_id,
        config.vision_start_token_id,
        config.vision_end_token_id,
    )
