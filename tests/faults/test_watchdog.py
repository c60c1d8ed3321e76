"""A rank that hangs, is stopped or dies ends the run and is named; one that is only slow is left alone."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from deepspeed.runtime.utils import is_invalid_grad_norm
from torch.distributed import TCPStore

from tests.conftest import Run
from univg_fast.train.blame import Seen, culprit, where
from univg_fast.train.engine import _clip_or_skip

from .conftest import Started

TIMEOUT = 25.0  # longer than a busy machine takes for any phase of these runs, or pauses


def seen(
    rank: int, entered: int, idle: float, waits: str = "", silent: float = 0.0, left: bool = False, rows: int = 0
) -> Seen:
    return Seen(rank, "sft", "update", 3, entered, idle, waits, "x.py:1 in f", 1, left, silent, rows)


@pytest.mark.parametrize(
    ("ranks", "guilty"),
    [
        # nothing has hung
        ([seen(0, 5, 1), seen(1, 5, 2)], None),
        # one waits long for another that works: a slow rank is no hang
        ([seen(0, 5, 99, "for the other ranks"), seen(1, 5, 2)], None),
        # also where nothing says that it waits, as on a GPU: it is further on
        ([seen(0, 6, 99), seen(1, 5, 2)], None),
        # the one that waits stopped first, and is not to blame
        ([seen(0, 5, 30, "for the other ranks"), seen(1, 5, 21)], 1),
        ([seen(0, 6, 30), seen(1, 5, 21)], 1),
        # a stopped process tells nothing: what it told last was that it waited
        ([seen(0, 5, 25, "for the other ranks"), seen(1, 5, 30, "for the other ranks", silent=29)], 1),
        # all wait: the one that is behind, else the one that stopped first
        ([seen(0, 6, 30, "for the other ranks"), seen(1, 5, 25, "for the device")], 1),
        ([seen(0, 5, 25, "for the device"), seen(1, 5, 30, "for the device")], 1),
        # the fast one has waited longest, and is further on: the rows say so
        ([seen(0, 5, 30, "for the device", rows=4), seen(1, 5, 25, "for the device", rows=2)], 1),
        # one waits on the host for another, whose device is busy
        ([seen(0, 5, 30, "for the other ranks"), seen(1, 5, 25, "for the device")], 1),
        # who has left by its own will is not missed
        ([seen(0, 5, 1), seen(1, 4, 99, left=True)], None),
    ],
)
def test_who_is_to_blame(ranks: list[Seen], guilty: int | None) -> None:
    found = culprit(ranks, timeout_s=20, silent_s=20)
    assert (found.rank if found else None) == guilty


class Waiting(torch.Tensor):
    """Reading it tells what is said of a process that waits there, and at which line."""

    told: ClassVar[list[tuple[str, str]]] = []

    def __bool__(self) -> bool:
        self.told.append(where({1: sys._getframe(1)}, 1))
        return True


class Noting(torch.autograd.Function):
    """Its backward, which is made on the main thread here, tells the same of the frame from which it was called."""

    @staticmethod
    def forward(context: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:
        frame = sys._getframe()
        while frame.f_back is not None and frame.f_code.co_name != "_engine_run_backward":
            frame = frame.f_back
        Waiting.told.append(where({1: frame}, 1))
        return gradient


def test_where_deepspeed_and_torch_wait_for_a_gpu() -> None:
    """The real lines, so that other versions of them are noticed: the norm at ZeRO 1 and 0, and the backward pass."""
    Waiting.told.clear()
    norm = torch.ones(()).as_subclass(Waiting)
    is_invalid_grad_norm(norm)
    weight = torch.nn.Parameter(torch.ones(2))
    weight.grad = torch.ones(2).as_subclass(Waiting)
    _clip_or_skip(SimpleNamespace(param_groups=[{"params": [weight]}]), (), {}, max_norm=0.0)
    Noting.apply(torch.ones(1, requires_grad=True)).sum().backward()
    assert [waits for waits, _ in Waiting.told] == ["for the device"] * 3, Waiting.told
    places = [place.partition(":")[0] for _, place in Waiting.told]
    assert places == ["utils.py", "engine.py", "graph.py"], Waiting.told


def test_the_first_two_ranks_look_at_all_and_the_third_at_these_two(tmp_path: Path) -> None:
    """Each of W ranks that reads what all tell would be W² answers of one store. Then the two are killed."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = {"WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    shared |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, str(Path(__file__).parent / "watch_worker.py"), str(tmp_path)]
    ranks = [
        subprocess.Popen(command, env=os.environ | shared | {"RANK": str(r)}, stderr=subprocess.PIPE, text=True)
        for r in range(3)
    ]
    try:
        said = [rank.communicate(timeout=250)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    read = [json.loads((tmp_path / f"rank_{r}.json").read_text()) for r in range(3)]
    assert read == [["0", "1", "2"], ["0", "1", "2"], ["0", "1"]]
    assert [rank.returncode for rank in ranks] == [-signal.SIGKILL, -signal.SIGKILL, 1], said
    assert re.search(r"^rank [01] of 3 has gone without a word.*: phase update of sft step 7, silent", said[2], re.M)


def test_a_rank_that_hangs_is_named_with_its_phase_and_every_ranks_stacks(
    drill: Callable[..., Run], tmp_path: Path
) -> None:
    settings = {"fault__kind": "hang", "fault__rank": "1", "fault__step": "2", "run__hang_timeout_s": str(TIMEOUT)}
    run = drill(tmp_path / "run", stages="[sft]", **settings)
    assert run.code == 1
    said = re.findall(
        r"^rank 1 of 2 hangs: phase update of sft step 2, no progress for (\d+)\.\d s, at faults", run.output, re.M
    )
    assert len(said) == 1 and TIMEOUT <= int(said[0]) < TIMEOUT + 60, run.output[-4000:]
    assert "rank 1 of 2 hangs" in run.output.partition("Root Cause")[2], "torchrun's summary names it, too"
    stacks = [(tmp_path / "run" / "logs" / f"stacks_rank{rank}.txt").read_text() for rank in range(2)]
    assert "in on_entering" in stacks[1] and "in give_up_if_late" in stacks[0] and "Thread" in stacks[0]


def phase_slow(start: Callable[..., Started], **more: str) -> Started:
    """A run whose rank 1 sleeps in the update of step 2, for longer than the test lasts."""
    settings = {"fault__kind": "slow", "fault__seconds": "900", "fault__rank": "1", "fault__step": "2"} | more
    run = start(stages="[sft]", **settings)
    run.wait_for("now: slow")
    time.sleep(0.5)
    return run


@pytest.mark.slow
@pytest.mark.drill
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_is_named_by_the_other(start: Callable[..., Started], rank: int) -> None:
    run = phase_slow(start, run__hang_timeout_s="900")
    os.kill(run.ranks()[rank], signal.SIGKILL)
    assert run.end(250) == 1
    assert re.search(
        rf"^rank {rank} of 2 has gone without a word.*: phase (update|optim) of sft step 2, ", run.output, re.M
    ), run.output[-6000:]


@pytest.mark.slow
@pytest.mark.drill
def test_a_stopped_rank_is_named(start: Callable[..., Started]) -> None:
    """SIGSTOP: as a machine that has frozen. torchrun then kills it, after a grace of 30 s of its own."""
    run = phase_slow(start, run__hang_timeout_s=str(TIMEOUT))
    os.kill(run.ranks()[1], signal.SIGSTOP)
    assert run.end(TIMEOUT + 200) == 1
    assert re.search(r"^rank 1 of 2 has gone without a word.*: phase update of sft step 2, silent", run.output, re.M)
    assert "in give_up_if_late" in (run.folder / "logs" / "stacks_rank0.txt").read_text()


@pytest.mark.slow
@pytest.mark.drill
def test_a_slow_rank_is_left_alone(drill: Callable[..., Run], tmp_path: Path) -> None:
    """Three pauses, each shorter than the limit, all together longer."""
    settings = {"fault__kind": "slow", "fault__seconds": "10", "fault__rank": "1", "fault__times": "3"}
    run = drill(tmp_path / "run", stages="[sft]", run__hang_timeout_s=str(TIMEOUT), **settings)
    assert run.code == 0, run.output[-3000:]
    assert run.output.count("now: slow") == 3
    assert not list((tmp_path / "run" / "logs").iterdir()), "no stacks were written"


@pytest.mark.slow
@pytest.mark.drill
def test_sigusr1_writes_the_stacks_and_the_run_goes_on(start: Callable[..., Started]) -> None:
    run = start(stages="[sft]", fault__kind="slow", fault__seconds="12")
    run.wait_for("now: slow")
    os.kill(run.ranks()[0], signal.SIGUSR1)
    assert run.end(250) == 0
    assert "in on_entering" in (run.folder / "logs" / "stacks_rank0.txt").read_text()
