"""Kinds of fields that the schema's keys are: their defaults, and the bounds that a value is checked against."""

from __future__ import annotations

import os
from dataclasses import field
from typing import Any

Bounds = tuple[float | None, float | None, float | None]  # greater than, at least, at most


def num(default: Any, *, gt: float | None = None, ge: float | None = None, le: float | None = None) -> Any:
    """A numeric field with bounds; None passes, where the type allows it."""
    return field(default=default, metadata={"bounds": (gt, ge, le)})


def filled(default: dict[str, Any]) -> Any:
    """A field whose default is a copy of this mapping."""
    return field(default_factory=lambda: dict(default))


def of_recipe() -> Any:
    """A field that rewards.recipe says, or univg_r1's where there is none; None only until then."""
    return field(default=None)


def cores() -> Any:
    """A number of threads: this rank's share of the machine's cores, at most 8."""

    def usable() -> int:
        ours = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # macOS
        return max(1, min(8, ours // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))

    return field(default_factory=usable, metadata={"bounds": (None, 0, None)})
