"""A shortened demo, stopped by Ctrl-C at random moments and started again, ends with the numbers of one that was not.

More of it, by hand: UNIVG_CTRL_C=20 interruptions, UNIVG_SEED for other moments, and `-s` to see where they hit.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Run
from tests.faults.conftest import Started, assert_same_numbers

TIMES, SEED = int(os.environ.get("UNIVG_CTRL_C", "3")), int(os.environ.get("UNIVG_SEED", "0"))
SETTINGS = {
    "sft__max_steps": "30",
    "grpo__max_steps": "6",
    "evaluate__max_samples": "6",
    "evaluate__prompts_per_batch": "1",
    "save__steps": "2",
    "log__rollout_steps": "1",
}
LEAVES_WITHIN = 200.0  # seconds


@pytest.mark.drill
def test_interrupted_again_and_again(start: Callable[..., Started], tmp_path: Path) -> None:
    first = start(ranks=1, name="whole", **SETTINGS)
    assert first.end(600) == 0, first.output[-4000:]
    seconds, moments, found = time.monotonic() - first.began, random.Random(SEED), []
    for number in range(TIMES):
        run, after = start(ranks=1, name="other", **SETTINGS), moments.uniform(0, 0.25 * seconds)
        while number and where(run.output) == "the start" and run.process.poll() is None:
            time.sleep(0.05)  # the first moment may come before the work begins
        begun = time.monotonic()
        while time.monotonic() < begun + after and run.process.poll() is None:
            time.sleep(0.05)
        if run.process.poll() is not None:  # it was done before
            assert run.process.returncode == 0, run.output[-4000:]
            break
        asked = time.monotonic()
        os.killpg(run.process.pid, signal.SIGINT)  # a terminal sends it to torchrun and to the ranks alike
        run.end(LEAVES_WITHIN)
        found.append(
            f"after {asked - run.began:.1f} s, at {where(run.output)}; left {time.monotonic() - asked:.1f} s later"
        )
        print(f"\n{found[-1]}", flush=True)
        assert "/univg_fast/" not in run.output.partition("Traceback")[2], run.output[-4000:]  # torchrun's is its own
    last = start(ranks=1, name="other", **SETTINGS)
    assert last.end(600) == 0, last.output[-4000:]
    assert found
    whole, other = (Run(each.folder, each.output, 0) for each in (first, last))
    assert_same_numbers(other, whole)
    rollouts = [{path.name: path.read_text() for path in run.folder.glob("rollouts/*")} for run in (other, whole)]
    assert rollouts[0].keys() == rollouts[1].keys() and len(rollouts[1]) == 6
    for name, text in rollouts[1].items():
        assert rollouts[0][name].replace(str(other.folder), "") == text.replace(str(whole.folder), ""), found


def where(output: str) -> str:
    """The last line of progress."""
    lines = [line for line in output.splitlines() if line.startswith(("sft ", "grpo ", "eval "))]
    return lines[-1].partition(" | ")[0] if lines else "the start"
