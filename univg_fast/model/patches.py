"""Patches of still images: their frames are copies of one another, so they travel as one.

A patch embedding multiplies each frame by its own part of the weight. For equal frames that is the frame by the sum of
the parts: half the pixels and half the work, and by autograd each part gets the gradient that it had.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


def take_single_frames(embed: Any) -> None:
    """Let a patch embedding of transformers take patches of one frame beside those of all frames."""
    embed.forward = MethodType(_embed, embed)
    embed.proj.forward = MethodType(_project, embed.proj)


def repeat_frames(pixels: torch.Tensor, frames: int) -> torch.Tensor:
    """[patches, 3*p*p] -> [patches, 3*frames*p*p], as transformers' image processors make them."""
    return pixels.view(len(pixels), 3, 1, -1).expand(-1, -1, frames, -1).reshape(len(pixels), -1)


def _embed(self: Any, pixels: torch.Tensor) -> torch.Tensor:
    side = self.patch_size
    frames = pixels.shape[1] // (self.in_channels * side**2)
    return self.proj(pixels.to(self.proj.weight.dtype).view(-1, self.in_channels, frames, side, side)).flatten(1)


def _project(self: nn.Conv3d, pixels: torch.Tensor) -> torch.Tensor:
    if pixels.shape[2] == self.weight.shape[2]:
        return nn.Conv3d.forward(self, pixels)
    return F.linear(pixels.flatten(1), self.weight.sum(2).flatten(1), self.bias)
