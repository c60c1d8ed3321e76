"""Where a stage stands between two steps: what a checkpoint holds beside weights, optimizer and random states."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from univg_fast.structs import BadRecord


@dataclass
class StageState:
    """The same on every rank."""

    step: int = 0  # steps done
    cursor: int = 0  # batches of the loader used up; more than steps where prompts were drawn anew
    bad: float = 0.0  # records that could not be used
    seen: float = 0.0  # records asked for
    skipped: int = 0  # updates with gradients that were not finite
    skipped_in_a_row: int = 0  # steps without any other update, up to this one; a resume counts anew
    saves_failed: int = 0


@dataclass(frozen=True)
class Outcome:
    """What a step did."""

    metrics: dict[str, float]  # equal on all ranks
    rollouts: Callable[[], list[dict[str, Any]]]  # makes this rank's lines of rollouts/, where somebody reads them
    bad: list[BadRecord]  # this rank's records that could not be used
    cursor: int  # the loader's batch to draw next
    uids: list[str] = field(default_factory=list)  # this rank's samples, also those that other ranks drew
    suspects: list[str] = field(default_factory=list)  # of them, those of rows whose loss was not finite
