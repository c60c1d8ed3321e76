"""What differs between model families, as data. Only Qwen2-VL so far; positions (packing) are common to all of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from transformers import PretrainedConfig


@dataclass(frozen=True)
class Family:
    """Numbers of a model's vision side. `coordinates`: what the box numbers in its text mean."""

    model_type: str
    image_token_id: int
    banned_token_ids: tuple[int, ...]  # placeholders that must never be sampled
    patch_size: int
    merge_size: int
    temporal_patch_size: int
    coordinates: str = "norm1000"

    @property
    def patch_dim(self) -> int:
        return 3 * self.temporal_patch_size * self.patch_size**2


def qwen2_vl(config: PretrainedConfig) -> Family:
    vision = config.vision_config
    return Family(
        model_type="qwen2_vl",
        image_token_id=config.image_token_id,
        banned_token_ids=(
            config.image_token_id,
            config.video_token_id,
            config.vision_start_token_id,
            config.vision_end_token_id,
        ),
        patch_size=vision.patch_size,
        merge_size=vision.spatial_merge_size,
        temporal_patch_size=vision.temporal_patch_size,
    )


FAMILIES = {"qwen2_vl": qwen2_vl}


def family_of(config: PretrainedConfig) -> Family:
    """The adapter for a model config; ValueError names the families there are."""
    if config.model_type not in FAMILIES:
        raise ValueError(
            f"model: expected one of the families {sorted(FAMILIES)}, got model_type={config.model_type!r}; "
            "CONTRIBUTING.md says how to add a family"
        )
    return FAMILIES[config.model_type](config)


def image_layout(grids: np.ndarray) -> tuple[np.ndarray, tuple[tuple[int, int], ...]]:
    """Sort images by size so that equal ones are encoded as one batch.

    Returns `order` (images, smallest first, stable) and runs of (number of images, patches of each).
    """
    sizes = grids.prod(-1)
    order = np.argsort(sizes, kind="stable")
    lengths, counts = np.unique(sizes, return_counts=True)
    return order, tuple((int(c), int(n)) for n, c in zip(lengths, counts, strict=True))
