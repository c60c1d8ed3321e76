"""A signal on one rank of two, at any time: all ranks leave, and the same command ends with the same numbers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, Run

from .conftest import Started, assert_same_numbers, hear

CODES = {"sigterm": 143, "sigint": 130}


def exit_codes(run: Run | Started) -> set[str]:
    """Of the ranks, as torchrun reports them."""
    return {line.split(":")[1].split("(")[0].strip() for line in run.output.splitlines() if "  exitcode  :" in line}


def interrupted(drill: Callable[..., Run], folder: Path, stage: str | None, phase: str, step: int, rank: int) -> Run:
    """A run with a SIGTERM at that place, of which torchrun says that every rank left with 143, within 60 s."""
    kind = "sigint" if phase == "ref" else "sigterm"
    at = {"fault__kind": kind, "fault__phase": phase, "fault__step": str(step), "fault__rank": str(rank)}
    if stage is not None:
        at["fault__stage"] = stage
    began = time.monotonic()
    run = drill(folder, save__steps="1" if phase == "save" else "0", **at)
    assert "now: " + kind in run.output, f"{stage} {phase} {step} was never entered:\n{run.output[-3000:]}"
    assert run.code == 1, run.output[-3000:]  # torchrun's own, whatever the ranks' are
    assert exit_codes(run) == {str(CODES[kind])}, run.output[-3000:]
    assert time.monotonic() - began < 120, "60 s, and as much for the start of the run"
    return run


def test_a_signal_in_a_rollout_abandons_the_step_on_all_ranks(
    drill: Callable[..., Run], whole: Run, tmp_path: Path
) -> None:
    """The step before it is saved, and the one that was abandoned is done again with the same samples."""
    folder = tmp_path / "run"
    run = interrupted(drill, folder, "grpo", "gen", 2, rank=1)
    assert [row["step"] for row in run.metrics("grpo")] == [1]
    assert [p.name for p in (folder / "ckpt").iterdir()] == ["grpo_000001"]
    rest = drill(folder)
    assert rest.code == 0, rest.output[-3000:]
    assert "resumed grpo at step 1" in rest.output
    assert_same_numbers(rest, whole)


@pytest.mark.slow
@pytest.mark.drill
@pytest.mark.timeout(900)
def test_a_signal_in_every_phase(drill: Callable[..., Run], whole: Run, tmp_path: Path) -> None:
    """One run that is stopped in each phase in turn, by one rank or the other, and each time goes on."""
    folder = tmp_path / "run"
    places: list[tuple[str | None, str, int, int, str | None]] = [
        (None, "eval", 1, 1, None),  # stage, phase, step, rank, the checkpoint that is there after
        ("sft", "load", 1, 0, None),  # before the first step there is nothing to save
        ("sft", "data", 1, 1, "sft_000001"),
        ("sft", "update", 2, 0, "sft_000002"),  # what has begun is finished
        ("sft", "save", 3, 1, "sft_000003"),
        ("grpo", "gen", 1, 0, None),  # what no update has begun for is abandoned
        ("grpo", "score", 1, 1, None),
        ("grpo", "update", 1, 1, "grpo_000001"),
        ("grpo", "ref", 3, 0, "grpo_000002"),
        ("grpo", "optim", 3, 1, None),  # the last step: the stage is done and exported
        ("grpo", "eval", 1, 0, None),
    ]
    for stage, phase, step, rank, saved in places:
        interrupted(drill, folder, stage, phase, step, rank)
        if saved is not None:
            assert (folder / "ckpt" / saved / "manifest.json").is_file(), f"{phase}: no {saved}"
    rest = drill(folder)
    assert rest.code == 0, rest.output[-3000:]
    assert_same_numbers(rest, whole)


@pytest.mark.slow
@pytest.mark.drill
@pytest.mark.timeout(600)
def test_ctrl_c_at_the_terminal(start: Callable[..., Started], drill: Callable[..., Run], whole: Run) -> None:
    """torchrun gets it, and tells the ranks. Its own exit code is 1."""
    run = start(fault__kind="slow", fault__seconds="4", fault__phase="update", fault__stage="sft", fault__step="2")
    run.wait_for("now: slow")
    run.process.send_signal(signal.SIGINT)
    assert run.end(60) == 1
    assert "stopped by SIGINT; the same command goes on from here" in run.output
    assert (run.folder / "ckpt" / "sft_000002" / "manifest.json").is_file()
    rest = drill(run.folder)
    assert rest.code == 0, rest.output[-3000:]
    assert_same_numbers(rest, whole)


@pytest.mark.slow
@pytest.mark.drill
def test_a_second_ctrl_c_ends_at_once(start: Callable[..., Started]) -> None:
    """Also where the first one waits for a step that takes for ever. Nothing is saved."""
    run = start(ranks=0, fault__kind="slow", fault__seconds="300", fault__phase="update", stages="[sft]")
    run.wait_for("now: slow")
    run.process.send_signal(signal.SIGINT)
    run.wait_for("Ctrl-C again ends it at once")
    time.sleep(1.2)
    run.process.send_signal(signal.SIGINT)
    assert run.end(10) == 130
    assert not list((run.folder).glob("ckpt/sft_*")) and "Traceback" not in run.output


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("after_s", [0.0, 1.0, 2.5])
def test_a_signal_during_the_imports_ends_without_a_traceback(
    start: Callable[..., Started], number: signal.Signals, code: int, after_s: float
) -> None:
    """From the command's first lines on; what Python does before them is its own."""
    run = start(ranks=0)
    while not is_caught(run.process.pid, signal.SIGUSR1):
        time.sleep(0.01)
    time.sleep(after_s)
    run.process.send_signal(number)
    ended = run.end(20)
    assert ended in (-number, code), "by the signal itself, or with a shell's code for it"
    assert "Traceback" not in run.output and "KeyboardInterrupt" not in run.output


def is_caught(pid: int, number: int) -> bool:
    """Whether the process has a handler for the signal."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return bool(int(next(line.split()[1] for line in lines if line.startswith("SigCgt")), 16) >> (number - 1) & 1)


LISTENER = """
import sys, time
from univg_fast.train import stopping
stopping.install()
def work():
    print("ready", flush=True)
    began = time.monotonic()
    while time.monotonic() - began < 20 and not (stopping.requested() and "late" not in sys.argv):
        time.sleep(0.01)
    print("stopped early", stopping.requested(), flush=True)
from univg_fast import distributed
def main():
    if "idle" in sys.argv:
        print("ready", flush=True)
        time.sleep(20)
    try:
        with stopping.finishing():
            work()
    finally:
        if "stuck" in sys.argv:
            print("closing", flush=True)
            stopping.LEAVE_S = float(sys.argv[2])
            time.sleep(20)  # a tracker without its network
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
    out, err = process.communicate(timeout=10)
    assert process.returncode == 128 + number and out == "stopped early True\n", err
    assert f"stopped by {number.name}; the same command goes on from here" in err and "Traceback" not in err


def test_where_nothing_is_lost_a_signal_ends_the_process_at_once() -> None:
    process = listen("idle")
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=5)
    assert process.returncode == 143 and out == "" and "SIGTERM: nothing is lost" in err


def test_the_same_ctrl_c_on_two_ways_is_one() -> None:
    """A launcher and the terminal may both send it; a second one, a second later, is meant."""
    process = listen("late")
    assert process.stdout.readline() == "ready\n"
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
    assert process.poll() is None
    time.sleep(1.2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=5)
    assert process.returncode == 130 and out == "" and "asked again, ended at once" in err


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
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--rdzv_backend", "c10d"]
    command += ["--rdzv_endpoint", "127.0.0.1:0", str(script)]
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
        until(lambda: log.read_text().count("rank ") >= 2 or launcher.poll() is not None, 120)
        pids = [int(line.split()[1]) for line in log.read_text().splitlines() if line.startswith("rank ")]
        launcher.kill()
        launcher.wait()
        until(lambda: not any(is_alive(pid) for pid in pids), 60)
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
    for again, patience, words in ((True, 60.0, "asked again, ended at once"), (False, 2.0, "did not close in 2 s")):
        process = listen("stuck", str(patience))
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert [process.stdout.readline() for _ in range(2)][1] == "closing\n"
        time.sleep(1.2)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        assert process.poll() is None
        if again:
            process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=8)
        assert process.returncode == 130 and words in err and "all is saved" in err


def test_fired_faults_are_noted(tmp_path: Path) -> None:
    """And not done again in that folder, so that the same command goes on."""
    from univg_fast.config.schema import FaultConfig
    from univg_fast.train.faults import Faults
    from univg_fast.train.phases import Phases

    def enter(step: int) -> Phases:
        phases = Phases()
        phases.stage, phases.step = "sft", step
        Faults(FaultConfig(kind="slow", seconds=0.0, step=2, times=2), phases, tmp_path)
        with phases("data"), phases("update"), phases("update", row=1):
            pass
        return phases

    def fired() -> list[str]:
        file = tmp_path / "fired_rank0.json"
        return json.loads(file.read_text()) if file.is_file() else []

    enter(1)
    assert fired() == []
    enter(2)
    enter(2)
    assert fired() == ["slow sft 2 update"]
    enter(3)
    enter(4)
    assert fired() == ["slow sft 2 update", "slow sft 3 update"]
