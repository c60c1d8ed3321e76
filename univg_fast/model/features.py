"""What the vision tower says of images: features for the language model's input, and for its first layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class ImageFeatures:
    """`pooled` [M, H] stands in for the image tokens; `levels` [M, H] (Qwen3-VL) are added after layer 0, 1, ..."""

    pooled: torch.Tensor
    levels: tuple[torch.Tensor, ...] = ()

    def split(self, counts: Sequence[int]) -> list[ImageFeatures]:
        """Consecutive parts of `counts` tokens each."""
        parts = [x.split(list(counts)) for x in (self.pooled, *self.levels)]
        return [ImageFeatures(pooled, tuple(levels)) for pooled, *levels in zip(*parts, strict=True)]

    @staticmethod
    def cat(parts: Sequence[ImageFeatures]) -> ImageFeatures:
        """One after the other; `parts` must not be empty."""
        levels = zip(*(part.levels for part in parts), strict=True)
        return ImageFeatures(torch.cat([part.pooled for part in parts]), tuple(torch.cat(level) for level in levels))
