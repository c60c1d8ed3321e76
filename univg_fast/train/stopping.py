"""A request to stop: a signal on any one rank, heard by all of them without a collective.

A thread hears the signals, also while Python waits in a library's code, and asks the rendezvous store whether another
rank was signalled. Inside of `finishing()`, work that is worth finishing, the request is only noted: whoever loops for
long asks `requested()` and ends early what can be thrown away; `agreed()` is the collective by which all ranks then
abandon a step together, or none does. An update is finished where that takes no longer than FINISH_S. Elsewhere nothing
would be lost, and the process leaves at once.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Thread
from typing import Any, NoReturn

from univg_fast import distributed
from univg_fast.leaving import show_cursor
from univg_fast.train.phases import Phases

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
AGAIN_S = 1.0  # a later second Ctrl-C is meant; an earlier one is the same that came on two ways
FINISH_S = 15.0  # for an update in which no weight has moved yet; torchrun kills 30 s after its signal
ASK_ROWS = 8  # of an update whose ranks must leave at the same row: after so many they ask each other
LEAVE_S = 60.0  # after it has saved: to close logs and trackers
_KEY = "univg_fast/stop"  # in the rendezvous store: the number of the signal
_ASK_EVERY_S = 0.5  # of the store, which lies on one machine for all ranks
_number = 0  # of the signal that this rank or another one got
_first: tuple[int, float] | None = None  # the first signal that this rank itself got, and when
_heard = 0.0  # when this rank knew of it; 0: not yet
_finishing = False
_leaving = 0.0  # since when; 0: not yet
_resume = "auto"  # run.resume


class Stopped(distributed.StopRun):
    """The run was asked to stop, and has saved. The exit code is a shell's for the signal: 143, 130 or 129."""

    def __init__(self, number: int) -> None:
        global _leaving
        super().__init__(f"stopped by {signal.Signals(number).name}; {goes_on()}")
        self.code, _leaving = 128 + number, time.monotonic()


class GivenUp(Exception):
    """The update under way would take too long: all ranks abandon its step. Raised on every rank alike."""


def install(resume: str = "auto") -> None:
    """Hear SIGTERM, SIGINT and SIGHUP from now on. After `distributed.init`, in the main thread. `resume`: run.resume.

    A second Ctrl-C, a second or more after the first, ends the process at once. The end of torchrun is a SIGTERM, too.
    """
    global _resume
    _resume = resume
    ears, mouth = socket.socketpair()
    mouth.setblocking(False)
    signal.set_wakeup_fd(mouth.fileno(), warn_on_full_buffer=False)
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup, or a shell's background job
            signal.signal(number, _hear)  # and a byte arrives at the ears, also while Python waits in a library
    parent = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
    Thread(target=_listen, args=(ears, mouth, distributed.own_store(), parent), name="signals", daemon=True).start()


def goes_on() -> str:
    """How a run that has stopped is taken up again."""
    same = "the same command goes on from here"
    return same if _resume != "never" else "with --run.resume=auto " + same


def requested() -> bool:
    """Whether this rank was signalled, or has heard that another one was. Cheap, and not a collective."""
    return _number > 0


def asker(phases: Phases) -> Callable[[], bool]:
    """`requested` for who loops for long: each question is a sign of life, too."""

    def asked() -> bool:
        phases.beat()
        return requested()

    return asked


def agreed() -> int:
    """The signal that any rank was asked to stop with, on every rank alike; 0: none. Collective."""
    return int(distributed.reduce_floats({}, {"signal": _number})["signal"])


def is_late() -> bool:
    """Whether the request is older than FINISH_S here: rows need not be computed any more. Not a collective."""
    return _heard > 0 and time.monotonic() - _heard > FINISH_S


def give_up_if_late() -> None:
    """Raise GivenUp where `is_late` on any rank. Before an optimizer's first step: nothing has changed. Collective."""
    if distributed.reduce_floats({}, {"late": float(is_late())})["late"]:
        raise GivenUp


def leaves_rows(index: int, together: bool) -> bool:
    """Whether this rank may leave out row `index` of an update and those behind it; `give_up_if_late` must follow.

    `together`: ranks communicate in each row. Then all leave at the same one, by GivenUp, and this is collective.
    """
    if together and index and index % ASK_ROWS == 0:
        give_up_if_late()
    return is_late() and not together


@contextmanager
def finishing() -> Iterator[None]:
    """Work that all ranks finish, or abandon together, before they stop: raises Stopped at its end. Collective."""
    global _finishing
    distributed.barrier()  # a rank that has not come so far would leave at once
    _finishing = True
    yield
    if number := agreed():
        raise Stopped(number)
    _finishing = False


def _hear(number: int, frame: Any) -> None:
    """In the main thread: what it asks next is answered rightly, also before the listening thread has had its turn."""
    global _number
    _number = _number or number


def _listen(ears: socket.socket, mouth: Any, store: Any, parent: int | None) -> None:
    """`mouth` is only kept open. `parent`: the launcher's process id, if there is one."""
    global _heard
    told = False
    while True:
        ready, _, _ = select.select([ears], [], [], _ASK_EVERY_S)
        for number in ears.recv(64) if ready else b"":
            _note(number)
        if parent is not None and os.getppid() != parent:
            _launcher_is_gone()
        if not told:
            try:
                told = _tell_or_hear(store)
            except RuntimeError:  # the store is gone; torchrun's own, and torchrun with it
                told = True
                if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
                    _launcher_is_gone()
        if _number and not _heard:
            _heard = time.monotonic()
        if _leaving and time.monotonic() - _leaving > LEAVE_S:
            _leave_now(f"all is saved, but a log did not close in {LEAVE_S:g} s: ended without it")
        if _number and not _finishing and not _leaving:
            _leave_now(f"nothing is lost, {goes_on()}")


def _launcher_is_gone() -> None:
    """Nobody would end this rank, and the next start would find it in its folder. The ranks can still agree to stop."""
    global _number
    if not _number:
        _say("the launcher is gone (torchrun was killed, or its machine is down): this is taken for a SIGTERM")
        _number = signal.SIGTERM


def _note(number: int) -> None:
    global _number, _first
    if number not in SIGNALS:
        return
    if _leaving:  # a SIGTERM is torchrun's, to the ranks that are left when one has left
        if number == signal.SIGINT and _first is not None and time.monotonic() - max(_leaving, _first[1]) > AGAIN_S:
            _leave_now("asked again, ended at once: all is saved, but the logs may lack their end")
        _first = _first or (number, time.monotonic())
    elif _first is None:
        _first, _number = (number, time.monotonic()), _number or number
    elif signal.SIGINT in (number, _first[0]) and time.monotonic() - _first[1] > AGAIN_S:
        _leave_now("asked again, ended at once: steps since the last checkpoint will be done again")


def _tell_or_hear(store: Any) -> bool:
    """Whether this rank and the store (None: there are no other ranks) now both know of a request."""
    global _number
    if _number:
        is_first = store is None or store.compare_set(_KEY, "", str(_number)) == str(_number).encode()
        if is_first and _finishing:
            name = signal.Signals(_number).name
            _say(f"{name}: the run is saved after this step (long ones are given up); Ctrl-C again ends it at once")
    elif store is not None and store.check([_KEY]):
        _number = int(store.get(_KEY))
    return _number > 0


def _leave_now(why: str) -> NoReturn:
    show_cursor()
    _say(f"{signal.Signals(_number).name}: {why}")
    os._exit(128 + _number)


def _say(text: str) -> None:
    """Past Python's buffers, whose locks the main thread may hold."""
    with suppress(OSError):  # a terminal that is closed
        os.write(2, f"rank {distributed.rank()}: {text}\n".encode())
