"""A request to stop: a signal on any one rank, seen by all of them without a collective.

The signal's handler only notes it. Whoever loops for long asks `requested()` and ends early what can be thrown away;
`agreed()` is the collective by which all ranks then abandon a step together, or none does.
"""

from __future__ import annotations

import signal
import time
from typing import Any

from univg_fast import distributed

SIGNALS = (signal.SIGTERM, signal.SIGINT)
_KEY = "univg_fast/stop"  # in the rendezvous store: the number of the signal
_ASK_EVERY_S = 1.0  # of the store, which lies on one machine for all ranks
_seen = 0  # the signal's number
_told = False  # whether the store knows
_asked = 0.0


class Stopped(distributed.StopRun):
    """The run was asked to stop, and has saved. The exit code is a shell's for the signal: 143 (TERM), 130 (INT)."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}; the same command goes on from here")
        self.code = 128 + number


def install() -> None:
    """Note SIGTERM and SIGINT from now on instead of dying of them. A second SIGINT (Ctrl-C) ends the process."""
    for number in SIGNALS:
        signal.signal(number, _note)


def requested() -> bool:
    """Whether this rank was signalled, or has heard that another one was. Cheap, and not a collective."""
    global _seen, _told, _asked
    store = distributed.store()
    if store is None:
        return _seen > 0
    if _seen and not _told:
        _told = True
        store.set(_KEY, str(_seen))
    elif not _seen and time.monotonic() - _asked >= _ASK_EVERY_S:
        _asked = time.monotonic()
        if store.check([_KEY]):
            _seen, _told = int(store.get(_KEY)), True
    return _seen > 0


def agreed() -> int:
    """The signal that any rank was asked to stop with, on every rank alike; 0: none. Collective."""
    requested()
    return int(distributed.reduce_floats({}, {"signal": _seen})["signal"])


def _note(got: int, frame: Any) -> None:
    global _seen
    if _seen == got == signal.SIGINT:
        signal.default_int_handler(got, frame)
    _seen = got
