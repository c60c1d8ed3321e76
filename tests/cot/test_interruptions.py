"""A build that is killed or stopped goes on where it was, with real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from .conftest import Stub, rows, teach, write_boxes

ROOT = Path(__file__).resolve().parents[2]


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 100
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def start(boxes: Path, out: Path, stub: Stub) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "univg_fast.cot", "build", "--data", str(boxes), "--out", str(out)]
    command += ["--teacher", stub.url, "--model", "t", "--candidates", "4", "--threads", "4"]
    paths = [str(ROOT), str(ROOT / "kernels"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a run in the background hands on deaf ears
    )  # fmt: skip


def test_killed_in_the_middle_and_started_again(stub: Stub, tmp_path: Path) -> None:
    boxes, out = write_boxes(tmp_path / "data", 40), tmp_path / "stage1.jsonl"
    assert teach(stub, boxes, tmp_path / "whole.jsonl") == 0
    whole, journal = (tmp_path / "whole.jsonl").read_bytes(), tmp_path / "stage1.jsonl.journal"
    stub.answers = len(stub.requests) + 70  # of 200; the four threads then wait for one each
    process = start(boxes, out, stub)
    until(lambda: stub.waiting == 4 and journal.read_bytes().count(b"\n") > 8)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    stub.answers = 10**9
    stub.gate.set()
    assert not out.exists() and journal.exists()
    done = journal.read_bytes().count(b"\n") - 1
    assert 8 <= done < 40
    with journal.open("ab") as file:  # a line cut by the kill
        file.write(b'{"index": 39, "removed": {}, "ro')
    before = len(stub.requests)
    process = start(boxes, out, stub)
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 0 and f"going on after {done} records" in said, said
    assert out.read_bytes() == whole and not journal.exists()
    assert len(stub.requests) - before == (40 - done) * 5  # what was done is not asked again
    assert [row["id"] for row in rows(out)] == [f"r{i}" for i in range(40)]
    assert "\r" not in said and "cot 40/40 | kept 40 of 40" in said


def test_ctrl_c_ends_at_once_and_loses_nothing(stub: Stub, tmp_path: Path) -> None:
    boxes, out = write_boxes(tmp_path / "data", 12), tmp_path / "stage1.jsonl"
    stub.answers = 25  # of 60
    process = start(boxes, out, stub)
    until(lambda: stub.waiting == 4)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=100)  # the requests under way are never answered
    assert process.returncode == 130 and "the same command goes on" in said
    assert not out.exists() and Path(f"{out}.journal").read_bytes().endswith(b"\n")
