"""Hangs and deaths are found, and named: which rank, in which phase of which step, since when, and where in the code.

Each rank has a thread that tells the rendezvous store where the rank stands. The first two read where all do, and so
the end of either; the others look at these two only, as one store cannot tell all to all. A rank that does nothing for
run.hang_timeout_s, or does not even tell, ends the run on all ranks, and every rank whose thread still runs leaves the
stacks of all of its threads in run.dir/logs. While something is loaded or saved, bytes read and written are progress.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType

import torch.distributed as dist

from univg_fast import distributed
from univg_fast.train import stopping
from univg_fast.train.blame import GONE_S, Seen, culprit, where
from univg_fast.train.phases import Phases

SOON_S, LATE_S = 0.05, 0.5  # between two tellings, at least and at most
OF_BYTES = ("load", "save")  # phases in which a single call may read or write a file for an hour
ENOUGH_BYTES = 2**16  # between two looks; the looks themselves read some, too
LOOKERS = 2  # so many first ranks look at all
_KEY = "univg_fast/beat"  # in the store: /RANK where it stands, /verdict why all ranks end


class Watchdog:
    """A context manager around all of a run that has ranks: after distributed.init and stopping.install. Collective.

    `folder`: where the stacks go. On SIGUSR1, too: then the run goes on.
    """

    def __init__(self, phases: Phases, timeout_s: float, folder: Path) -> None:
        self.phases, self.timeout_s, self.path = phases, timeout_s, folder / f"stacks_rank{distributed.rank()}.txt"
        self.tick = min(max(timeout_s / 20, 0.2), 2.0)  # between two looks at the others
        self.store = distributed.own_store()
        self._main = threading.get_ident()
        self._tells = 0
        self._bytes = _bytes_moved()
        self._last: dict[int, tuple[bytes, float]] = {}  # of each rank, what it told last, and when that was new
        self._end = threading.Event()
        self._news = threading.Event()  # a phase has begun
        self._one = threading.Lock()  # one thread ends this rank: the other one must not, while it speaks
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.is_file() and self.path.stat().st_size:  # of a run that hung: the next one must not lose them
            old = (self.path.with_name(f"{self.path.stem}_old_{n}.txt") for n in range(1, 10_000))
            self.path.rename(next(path for path in old if not path.exists()))
        self._file = self.path.open("w")
        faulthandler.register(signal.SIGUSR1, self._file)
        self._arm()
        self._tell()
        distributed.barrier()  # from here on each rank has told something
        self.phases.watchers.insert(0, lambda name, step: self._news.set())
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is not None and _of_a_collective(error):
            self._name_the_dead(error)
        self._end.set()
        self._news.set()
        self._thread.join(timeout=GONE_S)
        faulthandler.cancel_dump_traceback_later()
        with suppress(RuntimeError):  # the store went first
            self._tell(left=True)
        faulthandler.register(signal.SIGUSR1)
        if self.path.stat().st_size == 0:
            self.path.unlink(missing_ok=True)

    def _watch(self) -> None:
        looked = time.monotonic()
        while not self._end.is_set():
            self._news.wait(min(LATE_S, self.tick))
            self._news.clear()
            try:
                self._tell()
                if time.monotonic() - looked < self.tick:
                    self._end.wait(SOON_S)
                    continue
                looked = time.monotonic()
                self._arm()
                self._look_at_files()
                if self.store is not None and self.store.check([f"{_KEY}/verdict"]):
                    with self._one:
                        self._leave(self.store.get(f"{_KEY}/verdict").decode(), mine=False)
                silent_s = GONE_S if stopping.requested() else self.timeout_s
                found = culprit(self._watched(silent_s), self.timeout_s, silent_s)
                if found is not None:
                    self._condemn(found)
            except RuntimeError as error:  # the store is gone, and the launcher with it
                self.store = None
                told = f"rank {distributed.rank()} can watch over itself only: the rendezvous store is gone ({error})"
                print(told.splitlines()[0], file=sys.stderr, flush=True)

    def _look_at_files(self) -> None:
        before, self._bytes = self._bytes, _bytes_moved()
        if self.phases.name in OF_BYTES and self._bytes - before > ENOUGH_BYTES:
            self.phases.beat()

    def _arm(self) -> None:
        """A thread that never gives up Python's lock stops this one, too: the stacks then come from below Python."""
        faulthandler.dump_traceback_later(self.timeout_s + 5 * self.tick, file=self._file)

    def _tell(self, left: bool = False) -> None:
        self._tells += 1
        if self.store is not None:
            mine = replace(self._mine(), left=left)
            self.store.set(f"{_KEY}/{mine.rank}", json.dumps(asdict(mine)))

    def _mine(self) -> Seen:
        at, frames = self.phases, sys._current_frames()
        idle = time.monotonic() - at.progress
        waits, place = where(frames, self._main)
        here = distributed.rank(), at.stage, at.name, at.step, at.entered
        return Seen(*here, idle, waits, place, self._tells, rows=at.rows)

    def _watched(self, silent_s: float) -> list[Seen]:
        """Whom this rank has an eye on: all, if it is one of the first; another one only after these fell silent."""
        looks = distributed.rank() < LOOKERS or self.store is None
        return self.everyone() if looks or all(s.silent > silent_s for s in self.everyone(LOOKERS)) else []

    def everyone(self, first: int | None = None) -> list[Seen]:
        """Where the ranks stand, or so many first ones."""
        if self.store is None:
            return [self._mine()]
        now, ranks = time.monotonic(), range(distributed.world_size())[:first]
        found = []
        for rank, told in zip(ranks, self.store.multi_get([f"{_KEY}/{r}" for r in ranks]), strict=True):
            if rank not in self._last or self._last[rank][0] != told:
                self._last[rank] = told, now
            seen, silent = Seen(**json.loads(told)), now - self._last[rank][1]
            found.append(replace(seen, idle=seen.idle + silent, silent=silent))
        return found

    def _name_the_dead(self, error: BaseException) -> None:
        """After a collective failed: if a rank tells nothing any more, end the run in its name."""
        pause = LATE_S if distributed.rank() < LOOKERS else 5.2 * LATE_S  # two looks
        deadline = time.monotonic() + GONE_S / 2
        while time.monotonic() < deadline:
            time.sleep(pause)
            if self._end.is_set() or self.store is None:
                return
            try:
                seen = self.everyone()
            except RuntimeError:
                return
            if any(s.left for s in seen):  # it failed by itself, and says so
                return
            dead = max(seen, key=lambda s: s.silent)
            if dead.silent > 5 * LATE_S:
                self._condemn(dead, f" ({str(error).strip().splitlines()[0][:200]})")

    def _condemn(self, found: Seen, why: str = "") -> None:
        """End the run on all ranks. The first rank to do so speaks."""
        gone = found.silent > GONE_S / 2 or why
        words = "has gone without a word (killed, stopped, or its machine is down)" if gone else "hangs"
        with self._one:
            rest = "\n".join(f"  {seen}" for seen in self.everyone())
            place = f"{str(found).partition(': ')[2]}{why}"
            verdict = (
                f"rank {found.rank} of {distributed.world_size()} {words}: {place}.\n{rest}\n"
                f"The stacks of the ranks that can still tell are in {self.path.parent}/stacks_rank*.txt; "
                f"run.hang_timeout_s={self.timeout_s:g} is how long a phase may do nothing"
            )
            mine = True
            if self.store is not None:
                told = self.store.compare_set(f"{_KEY}/verdict", "", verdict).decode()
                mine, verdict = told == verdict, told
            self._leave(verdict, mine)

    def _leave(self, verdict: str, mine: bool) -> None:
        faulthandler.dump_traceback(self._file)
        self._file.flush()
        if mine:
            time.sleep(3 * self.tick)  # torchrun ends all ranks when the first one leaves: let them write their stacks
            distributed.fail(verdict)
        time.sleep(GONE_S / 2)
        os._exit(1)


def _bytes_moved() -> int:
    """What this process has read and written so far, also of mapped files; 0 where the system cannot tell."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.split(":")[0] in ("rchar", "wchar", "read_bytes"))


def _of_a_collective(error: BaseException) -> bool:
    """Whether the error may come from another rank's end."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
