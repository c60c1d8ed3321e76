"""Where a rank stands, and who keeps the others."""

from __future__ import annotations

import linecache
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

GONE_S = 10.0  # a rank that tells nothing for so long after a request to stop, or an error, is dead
DEVICE, RANKS = "for the device", "for the other ranks"  # what a rank may wait for
_WAITS_FOR_DEVICE = (".item()", ".tolist()", ".cpu()", "synchronize(", "bool(")  # in the line that is under way
_OF_DEVICE = ("torch/cuda/__init__.py", "torch/cuda/streams.py", "torch/autograd/graph.py")  # or it is in such a file


@dataclass(frozen=True)
class Seen:
    """Where a rank stands, as it told, and for how long (s) it did nothing (`idle`) and told nothing (`silent`)."""

    rank: int
    stage: str
    phase: str
    step: int
    entered: int  # phases so far
    idle: float
    waits: str  # RANKS, DEVICE or ""
    place: str  # file:line in function
    tells: int = 0  # a count, so that a rank that stands still is not taken for a silent one
    left: bool = False  # it ended, by its own will
    silent: float = 0.0
    rows: int = 0  # of the phase, that have begun

    def __str__(self) -> str:
        idle = f"no progress for {self.idle:.1f} s" if self.silent < GONE_S / 2 else f"silent for {self.silent:.1f} s"
        waits = f", waits {self.waits}" if self.waits else ""
        return f"rank {self.rank}: phase {self.phase} of {self.stage} step {self.step}, {idle}{waits}, at {self.place}"


def culprit(ranks: Sequence[Seen], timeout_s: float, silent_s: float) -> Seen | None:
    """Who keeps the others: a rank that does nothing, and waits for nobody. None: nothing has hung.

    A rank that waits, or is further on than another one, is only taken where no rank at all does anything: then the
    one that got least far, in rows, too; among equals one that waits for its device, and then the one that stopped
    first. Devices that wait for each other look alike from the host: there it is a guess.
    """

    def is_silent(seen: Seen) -> bool:
        return seen.silent > silent_s

    def waits(seen: Seen) -> bool:
        return not is_silent(seen) and (bool(seen.waits) or any(o.entered < seen.entered for o in ranks))

    ranks = [seen for seen in ranks if not seen.left]
    stuck = [seen for seen in ranks if seen.idle > timeout_s or is_silent(seen)]
    guilty = [seen for seen in stuck if not waits(seen)]
    if not guilty and len(stuck) == len(ranks):
        guilty = stuck
    return min(guilty, key=lambda s: (not is_silent(s), s.entered, s.rows, s.waits == RANKS, -s.idle), default=None)


def where(frames: dict[int, FrameType], main: int) -> tuple[str, str]:
    """What the process waits for, and where its main thread is. On a GPU that waits for the backward pass's threads."""
    place, waits = "?", ""
    frame: FrameType | None = frames.get(main)
    if frame is not None:
        file, line = frame.f_code.co_filename, frame.f_lineno
        place = f"{Path(file).name}:{line} in {frame.f_code.co_name}"
        under_way = linecache.getline(file, line or 0)  # a frame may have no line
        if file.endswith(_OF_DEVICE) or any(mark in under_way for mark in _WAITS_FOR_DEVICE):
            waits = DEVICE
    for ident, top in frames.items():
        each: Any = None if ident == threading.get_ident() else top
        while each is not None:
            if each.f_code.co_filename.endswith("torch/distributed/distributed_c10d.py"):
                waits = RANKS
            each = each.f_back
    return waits, place
