"""The parts of a step: timed, ranged for a profiler, and told to whoever watches, by one context manager."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

Watcher = Callable[[str, int], None]  # (name of the phase, number of the step)


class Phases:
    """`with phases("update"): ...` times a part of the step as host seconds, and ranges it for NVTX where CUDA is.

    A phase inside another one is not counted twice. Names: data, gen, score, ref, update, optim, sync, save, eval.
    """

    def __init__(self) -> None:
        self.step = 0  # the one under way, from 1
        self.name = "start"  # the phase under way, or the last one
        self.watchers: list[Watcher] = []  # called on entering a phase; what one raises ends the step
        self._seconds: dict[str, float] = defaultdict(float)
        self._open: list[float] = []  # of each phase under way, the seconds of those inside it

    @contextmanager
    def __call__(self, name: str, row: int | None = None) -> Iterator[None]:
        """`row`: of several micro-batches of the phase, which one; for the profiler only."""
        self.name = name
        for watch in self.watchers:
            watch(name, self.step)
        began = time.perf_counter()
        self._open.append(0.0)
        try:
            with _nvtx_range(name if row is None else f"{name}/{row}"):
                yield
        finally:
            took = time.perf_counter() - began
            self._seconds[name] += took - self._open.pop()
            if self._open:
                self._open[-1] += took

    def take(self) -> dict[str, float]:
        """Seconds of each phase since the last call."""
        seconds = dict(self._seconds)
        self._seconds.clear()
        return seconds


def _nvtx_range(name: str) -> Any:
    if not torch.cuda.is_available():
        return nullcontext()
    import nvtx

    return nvtx.annotate(name, domain="univg_fast")
