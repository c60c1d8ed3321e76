"""A console that is gone (a pipe without a reader, a closed terminal) costs no step: what was promised is saved."""

from __future__ import annotations

import os
import pty
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import hear

# a step that is asked to stop: its line on the console comes before the save
STEPPING = """
import sys, time
from pathlib import Path
from univg_fast import distributed
from univg_fast.train import stopping
from univg_fast.train.console import Display
stopping.install()
def main():
    with stopping.finishing(), Display("sft", 3) as display:
        display.update(1, "loss 0.5")
        while not stopping.requested():
            time.sleep(0.01)
        display.update(2, "loss 0.4")
        print("warning", file=sys.stderr, flush=True)
        Path(sys.argv[1]).touch()
distributed.run(main)
"""


SPEAKING = """
import sys
from univg_fast import distributed
def main():
    print("rank", 1, "of", 2)
    print("warning:", 3, file=sys.stderr)
distributed.run(main)
"""


def test_a_line_is_one_write() -> None:
    """torchrun's `python -u` writes each word by itself, and words of several ranks mix. A datagram is one write."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        subprocess.run([sys.executable, "-u", "-c", SPEAKING], stdout=theirs, stderr=theirs, check=True, timeout=200)
        ours.setblocking(False)
        assert [ours.recv(100), ours.recv(100)] == [b"rank 1 of 2\n", b"warning: 3\n"]


def step(folder: Path, **streams: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", STEPPING, str(folder / "saved")]
    return subprocess.Popen(command, **streams, text=True, preexec_fn=hear, env=os.environ | {"TERM": "xterm"})


@pytest.mark.parametrize("gone", [["stdout"], ["stdout", "stderr"]], ids="+".join)
def test_a_pipe_without_a_reader_loses_no_step(tmp_path: Path, gone: list[str]) -> None:
    """As Ctrl-C leaves it behind `| tee`: it ends the tee at once, and the run after its step."""
    process = step(tmp_path, stdout=-1, stderr=-1)
    assert process.stdout is not None and process.stderr is not None
    try:
        line = process.stdout.readline()
        for name in gone:
            getattr(process, name).close()
        process.send_signal(signal.SIGINT)
        code = process.wait(40)
        said = "" if "stderr" in gone else process.stderr.read()
        process.stderr.close()
    finally:
        process.kill()
        process.wait()
    assert line.startswith("sft 1/3 | loss 0.5")
    assert code == 130 and "Traceback" not in said and "BrokenPipe" not in said, said
    assert (tmp_path / "saved").exists()


def test_a_terminal_that_is_closed_loses_no_step(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    process = step(tmp_path, stdout=theirs, stderr=-1)
    os.close(theirs)
    try:
        text = b""
        while b"loss 0.5" not in text:
            text += os.read(ours, 4096)
        os.close(ours)
        process.send_signal(signal.SIGHUP)
        _, said = process.communicate(timeout=40)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 129 and "Traceback" not in said and (tmp_path / "saved").exists(), said
