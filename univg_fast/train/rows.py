"""From a step's groups to this rank's packed rows: built on the host, in threads, and sent without waiting."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from univg_fast import distributed
from univg_fast.config import ModelConfig
from univg_fast.files import append_rows
from univg_fast.model import Family, PackedModel
from univg_fast.packing import Row, build_row
from univg_fast.packing.pinning import pinned
from univg_fast.packing.plan import PATCH, SEEN, GroupSize, Part
from univg_fast.packing.vision import VisionInputs, stack_images
from univg_fast.structs import BadRecord, Group, Record, Sample


def patch_cost(model: ModelConfig) -> float:
    """Of a patch that the tower sees in a pass of its row, for `GroupSize.patch`."""
    return SEEN if model.freeze_vision_tower else PATCH


def size_of(group: Group, patch: float = PATCH) -> GroupSize:
    """What planning needs to know of a group; `patch`: what one costs."""
    sample = group.sample
    images = sample.image_grid_thw.prod(-1)
    lengths = tuple(len(r) for r in group.responses)
    return GroupSize(len(sample.prompt_ids), lengths, int(images.sum()), int((images**2).sum()), patch)


class Look(NamedTuple):
    """What the vision tower sees in one pass."""

    samples: int  # whose images these are
    pixels: torch.Tensor  # patches of all of them
    vision: VisionInputs  # how the tower reads them


@dataclass(frozen=True)
class Builder:
    """Makes everything of a row that the device will read. Any thread may call it."""

    family: Family
    attention: str  # the face that will attend
    device: torch.device
    dtype: torch.dtype  # of pixels: the tower's, as half of the bytes then go to the device

    @classmethod
    def of(cls, model: PackedModel) -> Builder:
        return cls(model.family, model.attention.face, model.device, model.model.model.visual.dtype)

    def sft_row(self, samples: Sequence[Sample]) -> Row:
        """A row of stage-1 samples."""
        return self.row([sft_group(sample) for sample in samples])

    def row(self, groups: Sequence[Group]) -> Row:
        row: Row = pinned(build_row(groups, self.family, self.attention, self.dtype), self.device)
        return row

    def images(self, samples: Sequence[Sample], budget: int) -> tuple[Look, ...]:
        """All images, in order, in passes of at most `budget` image tokens; one sample's stay together."""
        patches = np.cumsum([0, *(int(sample.image_grid_thw.prod(-1).sum()) for sample in samples)])
        first, room, made = 0, budget * self.family.merge_size**2, []
        while first < len(samples):
            last = max(first + 1, int(np.searchsorted(patches, patches[first] + room, side="right")) - 1)
            made.append(Look(last - first, *stack_images(samples[first:last], self.family, self.dtype)))
            first = last
        looks: tuple[Look, ...] = pinned(tuple(made), self.device)
        return looks

    def rows(self, groups: Sequence[Group], plan: Sequence[Sequence[Part]], pool: ThreadPoolExecutor) -> Iterator[Row]:
        """The planned rows in order, made in the pool's threads from now on."""

        def make(parts: Sequence[Part]) -> Row:
            held = [(groups[part.group], part.responses) for part in parts]
            return self.row([Group(g.sample, tuple(g.responses[j] for j in responses)) for g, responses in held])

        return pool.map(make, plan)


def sft_group(sample: Sample) -> Group:
    assert sample.response_ids is not None, "the loader makes stage-1 samples with a response"
    return Group(sample, (sample.response_ids,))


def reduce_step(
    sums: Mapping[str, float],
    digest: int,
    maxima: Mapping[str, float] | None = None,
    refused: Sequence[BadRecord] = (),
) -> dict[str, float]:
    """`reduce_floats`, and RankError unless all ranks planned the step alike, with what some of them could not read.

    `digest`: of this rank's plan; `refused`: what this rank left out of it.
    """
    both = {"plan": float(digest), "-plan": -float(digest)}
    total = distributed.reduce_floats(sums, both | dict(maxima or {}))
    if total.pop("plan") != -total.pop("-plan"):
        raise distributed.RankError(
            "data: the ranks planned different steps from the headers and texts of the same records; do all of them "
            f"see the same image files?{_refused_by_some(refused)}"
        )
    return total


def _refused_by_some(refused: Sequence[BadRecord]) -> str:
    """Collective: the records that some ranks refused and others did not, the first three."""
    found = distributed.gather_objects([entry.message for entry in refused])
    common = set(found[0]).intersection(*found)
    alone = [f"rank {rank}: {text}" for rank, texts in enumerate(found) for text in texts if text not in common]
    more = f" (and {len(alone) - 3} more)" if len(alone) > 3 else ""
    return f" Refused by some only: {'; '.join(alone[:3])}{more}" if alone else ""


class OverBudget:
    """Tells of rows that no split brings under the budget, each record once. They run all the same.

    The first TOLD of this rank on the console, all of them in the file that `note` adds to.
    """

    TOLD = 20

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._told: set[str] = set()
        self._fresh: list[dict[str, Any]] = []

    def tell(self, record: Record, tokens: int, copies: int = 1) -> None:
        """`tokens` of a row with a part of the record's group, of which there are `copies`, each with the prompt."""
        if tokens <= self.budget or record.source in self._told:
            return
        self._told.add(record.source)
        self._fresh.append({"source": record.source, "uid": record.uid, "tokens": tokens, "copies": copies})
        if len(self._told) > self.TOLD:
            return
        again = f", its prompt computed {copies} times" if copies > 1 else ""
        last = "; further ones are in over_budget.jsonl only" if len(self._told) == self.TOLD else ""
        print(
            f"rank {distributed.rank()}: {record.source} ({record.uid}): a row of its own of {tokens} tokens{again}, "
            f"as prompt and longest response are more than pack.budget_tokens={self.budget}. "
            f"pack.budget_tokens={tokens} would hold it; data.max_length below {tokens} would skip it{last}",
            file=sys.stderr,
            flush=True,
        )

    def note(self, path: Path, **where: Any) -> None:
        """Add those that were new since the last call, with `where`."""
        append_rows(path, [where | {"rank": distributed.rank(), "budget": self.budget} | row for row in self._fresh])
        self._fresh.clear()
