"""Two processes: small collectives, and failures that end both at once with the culprit's name."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from univg_fast.config import RewardsConfig
from univg_fast.leaving import is_own_check
from univg_fast.rewards import check_terms
from univg_fast.train.choice import even_out


def test_collectives_on_two_ranks(launch: Any) -> None:
    done = launch("distributed_worker.py", "collectives", world=2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [done.stdout.count(f"rank {rank} fine") for rank in range(2)] == [1, 1], done.stdout


@pytest.mark.parametrize(
    ("mode", "message", "own_traceback"),
    [
        ("bug", "rank 1 of 2 failed: KeyError: 'lost key'", True),
        ("mistake", "error: rewards.terms: expected some of iou, ", False),
        ("together", "error: winding the tape failed on rank 1: OSError: no such tape", False),
        ("everybody", "error: rewards.terms: expected some of iou, ", False),
        (
            "plans",
            "error: data: the ranks planned different steps from the headers and texts of the same records; "
            "do all of them see the same image files? "
            "Refused by some only: rank 1: f:2: cannot open the image b.png: stale",
            False,
        ),
        (
            "attention",
            "error: model.attention: expected the same choice on all ranks, got different ones. "
            "Rank 0: attention: torch, as asked. Rank 1: attention: dense, as asked. ",
            False,
        ),
    ],
)
def test_failure_ends_both_ranks_and_names_the_culprit(
    launch: Any, mode: str, message: str, own_traceback: bool
) -> None:
    done = launch("distributed_worker.py", mode, world=2, timeout=250)  # a rank that is left waiting does so for 600 s
    assert done.returncode != 0
    ours, _, torchruns = done.stderr.partition("Root Cause")
    said = [line for line in ours.splitlines() if line.startswith(message)]
    assert len(said) == 1, ours
    assert message in torchruns, "torchrun's summary, the last thing a person sees, must name the cause"
    assert ("distributed_worker.py" in ours.partition("torch/distributed")[0]) == own_traceback


def test_a_rank_that_hangs_is_not_waited_for_longer_than_the_time_limit(launch: Any) -> None:
    done = launch("distributed_worker.py", "hang", world=2, timeout=250)
    assert done.returncode != 0 and "rank 0 of 2 failed" in done.stderr


def test_hosts_that_do_not_reach_each_other_are_told_of_the_interface(launch: Any) -> None:
    done = launch("distributed_worker.py", "collectives", world=2, timeout=250, GLOO_SOCKET_IFNAME="none0")
    ours, _, torchruns = done.stderr.partition("Root Cause")
    said = [line for line in ours.splitlines() if line.startswith("error: rank 0 on ")]
    assert done.returncode != 0 and len(said) == 1, done.stderr
    assert "cannot reach the others (" in said[0] and "GLOO_SOCKET_IFNAME is none0; set it" in said[0]
    assert said[0].endswith("of " + ", ".join(name for _, name in socket.if_nameindex())) and said[0] in torchruns


def test_the_interface_of_nccl_is_that_of_gloo(launch: Any) -> None:
    (_, name), *_ = socket.if_nameindex()
    for given, told in (("=" + name, name), ("none0", None), ("^" + name, None)):
        done = launch("distributed_worker.py", "interface", world=1, NCCL_SOCKET_IFNAME=given)
        assert f"gloo goes by {told}" in done.stdout, done.stderr[-3000:]


def test_without_torchrun_the_world_is_one_process(launch: Any) -> None:
    done = launch("distributed_worker.py", "everybody", world=0)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: rewards.terms: expected some of iou, ")


@pytest.mark.parametrize(
    ("fails", "is_own"),
    [
        (lambda: check_terms({"nonsense": 1.0}), True),
        (lambda: RewardsConfig(recipe="vlm_r1", parser="lenient"), True),
        (lambda: ThreadPoolExecutor(1).submit(check_terms, {"nonsense": 1.0}).result(), True),
        (lambda: json.loads(""), False),
        (lambda: even_out([1.0], [], 2), False),
    ],
    ids=["raised", "raised by a dataclass", "raised in a thread", "a library's", "an operation's"],
)
def test_only_what_this_package_raises_is_a_users_mistake(fails: Callable[[], Any], is_own: bool) -> None:
    """All of these are ValueErrors; what is nobody's mistake shows its traceback."""
    with pytest.raises(ValueError) as caught:
        fails()
    assert is_own_check(caught.value) == is_own
