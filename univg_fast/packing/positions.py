"""mRoPE positions of a prompt, from its token ids and image grids."""

from __future__ import annotations

from typing import Protocol

import numpy as np


class ImageTokens(Protocol):
    """What packing needs to know of a model family; `univg_fast.model.Family` has it."""

    @property
    def image_token_id(self) -> int: ...

    @property
    def merge_size(self) -> int: ...


def rope_positions(ids: np.ndarray, grids: np.ndarray, family: ImageTokens) -> tuple[np.ndarray, int]:
    """mRoPE positions [3, P] of a prompt and the position that follows it.

    Text counts up on all three rows. An image stands still in time and spans its merged rows and columns; what follows
    starts at its larger side. Equals transformers' `get_rope_index` for still images.
    """
    positions = np.empty((3, len(ids)), np.int64)
    is_image = ids == family.image_token_id
    cursor = at = image = 0
    while at < len(ids):
        if is_image[at]:
            height, width = (int(x) // family.merge_size for x in grids[image][1:])
            place = np.arange(height * width)
            positions[:, at : at + len(place)] = cursor + np.stack([0 * place, place // width, place % width])
            cursor += max(height, width)
            at += len(place)
            image += 1
        else:
            run = int(np.argmax(is_image[at:])) if is_image[at:].any() else len(ids) - at
            positions[:, at : at + run] = cursor + np.arange(run)
            cursor += run
            at += run
    return positions, cursor
