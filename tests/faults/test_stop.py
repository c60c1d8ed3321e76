"""A signal on one rank of two, at any time: all ranks leave, and the same command ends with the same numbers."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Run
from univg_fast.train.stopping import FINISH_S

from .conftest import Started, assert_same_numbers

CODES = {"sigterm": 143, "sigint": 130}


def exit_codes(run: Run | Started) -> set[str]:
    """Of the ranks, as torchrun reports them."""
    return {line.split(":")[1].split("(")[0].strip() for line in run.output.splitlines() if "  exitcode  :" in line}


def interrupted(drill: Callable[..., Run], folder: Path, stage: str | None, phase: str, step: int, rank: int) -> Run:
    """A run with a SIGTERM at that place, of which torchrun says that every rank left with 143."""
    kind = "sigint" if phase == "ref" else "sigterm"
    at = {"fault__kind": kind, "fault__phase": phase, "fault__step": str(step), "fault__rank": str(rank)}
    if stage is not None:
        at["fault__stage"] = stage
    run = drill(folder, save__steps="1" if phase == "save" else "0", **at)
    assert "now: " + kind in run.output, f"{stage} {phase} {step} was never entered:\n{run.output[-3000:]}"
    assert run.code == 1, run.output[-3000:]  # torchrun's own, whatever the ranks' are
    assert exit_codes(run) == {str(CODES[kind])}, run.output[-3000:]
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
@pytest.mark.timeout(1800)
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
def test_an_update_that_takes_too_long_is_given_up(
    start: Callable[..., Started], drill: Callable[..., Run], whole: Run
) -> None:
    """By all ranks, though one alone was slow; what is saved is the step before."""
    slow = {"fault__kind": "slow", "fault__seconds": str(FINISH_S + 5), "fault__phase": "update"}
    run = start(**slow, fault__stage="grpo", fault__step="2", fault__rank="1")
    run.wait_for("now: slow")
    run.process.send_signal(signal.SIGTERM)
    asked = time.monotonic()
    assert run.end(200) == 1 and "stopped by SIGTERM; the same command goes on from here" in run.output
    assert time.monotonic() - asked < 30, "torchrun ends its ranks then, and they would have saved nothing"
    assert [p.name for p in (run.folder / "ckpt").iterdir()] == ["grpo_000001"]
    rest = drill(run.folder)
    assert rest.code == 0, rest.output[-3000:]
    assert_same_numbers(rest, whole)


@pytest.mark.slow
@pytest.mark.drill
def test_ctrl_c_at_the_terminal(start: Callable[..., Started], drill: Callable[..., Run], whole: Run) -> None:
    """torchrun gets it, and tells the ranks. Its own exit code is 1."""
    run = start(fault__kind="slow", fault__seconds="5", fault__phase="update", fault__stage="sft", fault__step="2")
    run.wait_for("now: slow")
    run.process.send_signal(signal.SIGINT)
    assert run.end(200) == 1
    assert "stopped by SIGINT; the same command goes on from here" in run.output
    assert (run.folder / "ckpt" / "sft_000002" / "manifest.json").is_file()
    rest = drill(run.folder)
    assert rest.code == 0, rest.output[-3000:]
    assert_same_numbers(rest, whole)


@pytest.mark.slow
@pytest.mark.drill
def test_a_second_ctrl_c_ends_at_once(start: Callable[..., Started]) -> None:
    """Also where the first one waits for a step that takes for ever. Nothing is saved."""
    run = start(ranks=0, fault__kind="slow", fault__seconds="900", fault__phase="update", stages="[sft]")
    run.wait_for("now: slow")
    run.process.send_signal(signal.SIGINT)
    run.wait_for("Ctrl-C again ends it at once")
    time.sleep(1.2)
    run.process.send_signal(signal.SIGINT)
    assert run.end(100) == 130
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
    ended = run.end(200)
    assert ended in (-number, code), "by the signal itself, or with a shell's code for it"
    assert "Traceback" not in run.output and "KeyboardInterrupt" not in run.output


def is_caught(pid: int, number: int) -> bool:
    """Whether the process has a handler for the signal."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return bool(int(next(line.split()[1] for line in lines if line.startswith("SigCgt")), 16) >> (number - 1) & 1)
