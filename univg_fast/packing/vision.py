"""What a vision tower needs besides pixels, made on the host from the images' grids, so that no step asks the device.

A tower runs over the patches of all images at once. Equally long attention sequences stand next to each other as runs,
and each run is one batched attention call without a mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch

from univg_fast.structs import Sample


@dataclass(frozen=True)
class AttentionRuns:
    """`runs`: (how many, patches of each), one after the other. `order` gathers patches into runs, `back` undoes it."""

    runs: tuple[tuple[int, int], ...]
    order: torch.Tensor | None = None  # [patches] int64; None: they stand so already
    back: torch.Tensor | None = None


@dataclass(frozen=True)
class VisionInputs:
    """Of n images in the given order. `order` gathers their patches, `back` their tokens (after the merger)."""

    image_tokens: tuple[int, ...]  # tokens of each image
    images: AttentionRuns  # attention within each image
    windows: AttentionRuns | None = None  # attention within each window, in the blocks that have windows
    order: torch.Tensor | None = None  # [patches] int64; None: as given
    back: torch.Tensor | None = None  # [M] int64
    host: dict[str, torch.Tensor] = field(
        default_factory=dict
    )  # the tower's keyword arguments that are read on the CPU
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)  # the others

    def to(self, device: torch.device | str) -> VisionInputs:
        """A copy on `device`; what the CPU reads stays there."""

        def move(x: Any) -> Any:
            return x.to(device, non_blocking=True) if isinstance(x, torch.Tensor) else x

        def moved(runs: AttentionRuns | None) -> Any:
            return None if runs is None else AttentionRuns(runs.runs, move(runs.order), move(runs.back))

        return replace(
            self,
            images=moved(self.images),
            windows=moved(self.windows),
            order=move(self.order),
            back=move(self.back),
            tensors={name: move(x) for name, x in self.tensors.items()},
        )


class VisionFamily(Protocol):
    """What packing needs to know of a model family's images; `univg_fast.model.Family` has it."""

    @property
    def merge_size(self) -> int: ...

    @property
    def patch_dim(self) -> int: ...

    @property
    def vision_inputs(self) -> Callable[[np.ndarray], VisionInputs]: ...


def runs_of(sorted_lengths: np.ndarray) -> tuple[tuple[int, int], ...]:
    """(how many, length) of each run of equals."""
    lengths, counts = np.unique(sorted_lengths, return_counts=True)
    return tuple((int(count), int(length)) for length, count in zip(lengths, counts, strict=True))


def gather_blocks(sizes: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Indices that gather whole blocks in `order`; block i is `sizes[i]` neighbours."""
    starts = np.cumsum(sizes) - sizes
    within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes[order]) - sizes[order], sizes[order])
    return np.repeat(starts[order], sizes[order]) + within


def permutation(order: np.ndarray) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """`order` and its inverse, or nothing where it changes nothing."""
    if (order == np.arange(len(order))).all():
        return None, None
    return torch.from_numpy(order), torch.from_numpy(np.argsort(order))


def one_sequence(grids: np.ndarray) -> dict[str, torch.Tensor]:
    """Arguments that keep transformers from splitting the patches: the registered attention does."""
    return {"grid_thw": torch.from_numpy(grids), "cu_seqlens": torch.tensor([0, grids.prod(-1).sum()])}


def sorted_by_size(grids: np.ndarray, merge_size: int) -> VisionInputs:
    """Images from small to large, equal ones as one run; `host["grid_thw"]` is in that order, `tensors` is empty."""
    sizes = grids.prod(-1)
    tokens, by_size = sizes // merge_size**2, np.argsort(sizes, kind="stable")
    return VisionInputs(
        image_tokens=tuple(int(n) for n in tokens),
        images=AttentionRuns(runs_of(sizes)),
        order=permutation(gather_blocks(sizes, by_size))[0],
        back=permutation(gather_blocks(tokens, by_size))[1],
        host=one_sequence(grids[by_size]),
    )


NO_TOWER = VisionInputs((), AttentionRuns(()))  # of a row whose features are there already


def without_pixels(samples: Iterable[Sample]) -> list[Sample]:
    """Samples whose images' features stand in for their pixels: nothing is made of them for the tower.

    Nor are the pixels held, as they would be by a view.
    """
    return [replace(sample, pixel_values=sample.pixel_values[:0].copy()) for sample in samples]


def stack_images(
    samples: Sequence[Sample], family: VisionFamily, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, VisionInputs]:
    """Pixels [patches, patch_dim] of the samples' images, one after the other, and what the tower needs besides.

    Nothing for samples that have images and come `without_pixels`. Without any image there is one blank one of no
    tokens: a tower that trains, or whose parameters lie in pieces on all ranks, takes part in every row.
    """
    grids = np.concatenate([np.zeros((0, 3), np.int64), *(s.image_grid_thw for s in samples)])
    if len(grids) == 0:
        side = family.merge_size
        inputs = family.vision_inputs(np.array([[1, side, side]], np.int64))
        return torch.zeros(side**2, family.patch_dim, dtype=dtype), replace(inputs, image_tokens=())
    pixels = np.concatenate([s.pixel_values for s in samples if len(s.image_grid_thw)])
    if len(pixels) == 0:
        return torch.from_numpy(pixels).to(dtype), NO_TOWER
    return torch.from_numpy(pixels).to(dtype), family.vision_inputs(grids)
