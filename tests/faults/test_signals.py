"""Processes that only listen: what a signal does to work that is worth finishing, and to what is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.torchrun import torchrun

from .conftest import hear

LISTENER = """
import sys, time
from univg_fast.train import stopping
stopping.install()
for name, value in [word.split("=") for word in sys.argv if "=" in word]:
    setattr(stopping, name, float(value))
def work():
    print("ready", flush=True)
    began = time.monotonic()
    while time.monotonic() - began < 600 and not (stopping.requested() and "late" not in sys.argv):
        time.sleep(0.01)
    print("stopped early", stopping.requested(), flush=True)
from univg_fast import distributed
def main():
    if "idle" in sys.argv:
        print("ready", flush=True)
        time.sleep(600)
    try:
        with stopping.finishing():
            work()
    finally:
        if "stuck" in sys.argv:
            print("closing", flush=True)
            time.sleep(600)  # a tracker without its network
    print("never", flush=True)
distributed.run(main)
"""


def listen(*words: str) -> Any:
    command = [sys.executable, "-c", LISTENER, *words]
    return subprocess.Popen(command, stdout=-1, stderr=-1, text=True, preexec_fn=hear)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_what_is_worth_finishing_is_finished(number: signal.Signals) -> None:
    process = listen()
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 128 + number and out == "stopped early True\n", err
    assert f"stopped by {number.name}; the same command goes on from here" in err and "Traceback" not in err


def test_where_nothing_is_lost_a_signal_ends_the_process_at_once() -> None:
    process = listen("idle")
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 143 and out == "" and "SIGTERM: nothing is lost" in err


def test_the_same_ctrl_c_on_two_ways_is_one() -> None:
    """A launcher and the terminal may both send it; a second one, AGAIN_S later, is meant."""
    process = listen("late", "AGAIN_S=300")
    assert process.stdout.readline() == "ready\n"
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
    assert process.poll() is None
    process.kill()
    process.communicate()
    process = listen("late", "AGAIN_S=0")
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    next(line for line in process.stderr if "Ctrl-C again ends it at once" in line)  # the first one is heard
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 130 and out == "" and "asked again, ended at once" in err


def test_a_second_sigterm_is_not_impatience() -> None:
    """Schedulers repeat it, and torchrun sends one to the ranks that are left when one has left."""
    process = listen("late")
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    time.sleep(1.5)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert process.poll() is None
    process.kill()
    process.communicate()


def test_a_log_that_does_not_close_keeps_nobody() -> None:
    """All is saved then: Ctrl-C again ends it at once, and so does time. A SIGTERM is torchrun's to who is left."""
    for again, words in ((True, "asked again, ended at once"), (False, "did not close in 2 s")):
        process = listen("stuck", *(["AGAIN_S=0", "LEAVE_S=300"] if again else ["LEAVE_S=2"]))
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert [process.stdout.readline() for _ in range(2)][1] == "closing\n"
        if again:
            process.send_signal(signal.SIGTERM)
            time.sleep(1.0)
            assert process.poll() is None
            process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=200)
        assert process.returncode == 130 and words in err and "all is saved" in err


ORPHANS = """
import os, sys, time
from univg_fast import distributed
from univg_fast.train import stopping
def main():
    distributed.init(60)
    stopping.install("never")
    with stopping.finishing():
        print("rank", os.getpid(), flush=True)
        while not stopping.agreed():
            time.sleep(0.05)
        print("left together", flush=True)
distributed.run(main)
"""


def test_ranks_whose_launcher_was_killed_stop_together(tmp_path: Path) -> None:
    """Else they would train on, unseen, in a folder that the next start takes for its own."""
    script, log = tmp_path / "orphans.py", tmp_path / "log"
    script.write_text(ORPHANS)
    command = [*torchrun(2), str(script)]
    more = {
        "DS_ACCELERATOR": "cpu",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")]),
    }
    with log.open("w") as out:
        launcher = subprocess.Popen(command, stdout=out, stderr=out, cwd=ROOT, env=os.environ | more)
    pids: list[int] = []

    def until(holds: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)

    try:
        until(lambda: log.read_text().count("rank ") >= 2 or launcher.poll() is not None, 200)
        pids = [int(line.split()[1]) for line in log.read_text().splitlines() if line.startswith("rank ")]
        launcher.kill()
        launcher.wait()
        until(lambda: not any(is_alive(pid) for pid in pids), 200)
    finally:
        for pid in (*pids, launcher.pid):
            if is_alive(pid):
                os.kill(pid, signal.SIGKILL)
    said = log.read_text()
    assert len(pids) == 2 and said.count("left together") == 2 and "the launcher is gone" in said, said
    assert "stopped by SIGTERM; with --run.resume=auto the same command goes on" in said


def is_alive(pid: int) -> bool:
    path = Path(f"/proc/{pid}/stat")
    return path.exists() and path.read_text().rpartition(")")[2].split()[0] != "Z"
