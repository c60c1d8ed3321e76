"""The parts of a step: timed, ranged for a profiler, and told to whoever watches, by one context manager.

Here also lies where a rank stands, for the watchdog and for error messages. Anything that takes long calls `beat()`.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.profiler import record_function

Watcher = Callable[[str, int], None]  # (name of the phase, number of the step)
NAMES = ("data", "load", "gen", "score", "ref", "update", "optim", "sync", "save", "eval")


class Phases:
    """`with phases("update"): ...` times a part of the step as host seconds, and names it for profilers (torch, NVTX).

    A phase inside another one is not counted twice. The names are NAMES.
    """

    def __init__(self) -> None:
        self.stage = "start"  # what is under way: start, before (the first evaluation), sft, grpo
        self.step = 0  # the one under way, from 1
        self.name = "start"  # the phase under way, or the last one
        self.entered = 0  # phases so far; ranks that are at the same place have the same number
        self.rows = 0  # of the phase under way, how many have begun, where it is one of rows
        self.progress = time.monotonic()  # when something was last done
        self.row: tuple[int, int] | None = None  # tokens and patches of the row that was last computed
        self.watchers: list[Watcher] = []  # called on entering a phase; what one raises ends the step
        self._seconds: dict[str, float] = defaultdict(float)
        self._open: list[float] = []  # of each phase under way, the seconds of those inside it

    @contextmanager
    def __call__(self, name: str, row: int | None = None) -> Iterator[None]:
        """`row`: of several micro-batches of the phase, which one; ranks may have different numbers of them."""
        self.name = name
        self.entered += row is None
        self.rows = 0 if row is None else row + 1
        self.beat()
        for watch in self.watchers:
            watch(name, self.step)
        began = time.perf_counter()
        self._open.append(0.0)
        try:
            title = name if row is None else f"{name}/{row}"
            with record_function(title), _nvtx_range(title):
                yield
        finally:
            took = time.perf_counter() - began
            self._seconds[name] += took - self._open.pop()
            if self._open:
                self._open[-1] += took
            self.beat()

    def take(self) -> dict[str, float]:
        """Seconds of each phase since the last call."""
        seconds = dict(self._seconds)
        self._seconds.clear()
        return seconds

    def beat(self) -> None:
        """Something was done: not a hang. Any thread may call it, as often as it likes."""
        self.progress = time.monotonic()

    def follow(self, model: nn.Module) -> None:
        """Beat with each row that the model computes, and keep the row's size."""

        def before(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            self.beat()
            row = arguments[0]
            self.row = row.num_tokens, len(row.pixel_values)

        model.register_forward_pre_hook(before)


def _nvtx_range(name: str) -> Any:
    if not torch.cuda.is_available():
        return nullcontext()
    import nvtx

    return nvtx.annotate(name, domain="univg_fast")
