"""The oracle image: items shown with the images that hold their targets only, to learn what finding these costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .items import Item


def with_oracle_image(items: Sequence[Item]) -> tuple[list[Item], dict[str, int]]:
    """Every item in its place, and how many there are of each kind.

    `reduced`: its other images are left out. `whole`: each of its images holds a target. `unknown`: nobody says which
    image holds the target, so that all are shown. Questions stay as they are, also where they speak of other images.
    """
    counts = {"reduced": 0, "whole": 0, "unknown": 0}
    out = []
    for item in items:
        kept = _kept(item)
        kind = "unknown" if not kept else "whole" if len(kept) == len(item.images) else "reduced"
        counts[kind] += 1
        out.append(_shown(item, kept) if kind == "reduced" else item)
    return out, counts


def _kept(item: Item) -> list[int]:
    """The images that hold a target, 0-based; [] where they are not known."""
    if len(item.images) == 1:
        return [0]
    held = {truth.image for truth in item.truths}
    known = sorted(at for at in held if at is not None and 0 <= at < len(item.images))
    return known if len(known) == len(held) else []


def _shown(item: Item, kept: list[int]) -> Item:
    images, place = tuple(item.images[at] for at in kept), {old: new for new, old in enumerate(kept)}
    truths = tuple(truth._replace(image=place[truth.image]) for truth in item.truths if truth.image is not None)
    record = item.record
    if record is not None:
        targets = tuple(replace(t, image=place[t.image]) for t in record.targets if t.image is not None)
        record = replace(record, images=images, targets=targets)
    return replace(item, images=images, truths=truths, record=record)
