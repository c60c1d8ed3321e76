"""A console that is gone (a pipe whose reader died, a closed terminal) costs no step: what was promised is still saved."""

from __future__ import annotations

import os
import pty
import signal
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


@pytest.mark.parametrize("gone", [["stdout"], ["stdout", "stderr"]], ids="+".join)
def test_a_pipe_without_a_reader_loses_no_step(tmp_path: Path, gone: list[str]) -> None:
    """As Ctrl-C leaves it behind `| tee`: it ends the tee at once, and the run after its step."""
    command = [sys.executable, "-c", STEPPING, str(tmp_path / "saved")]
    with subprocess.Popen(command, stdout=-1, stderr=-1, text=True, preexec_fn=hear) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "sft 1/3 | loss 0.5 | eta -:--\n"
        for name in gone:
            getattr(process, name).close()
        process.send_signal(signal.SIGINT)
        said = "" if "stderr" in gone else process.stderr.read()
        assert process.wait(40) == 130 and "Traceback" not in said and "BrokenPipe" not in said, said
    assert (tmp_path / "saved").exists()


def test_a_terminal_that_is_closed_loses_no_step(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", STEPPING, str(tmp_path / "saved")]
    with subprocess.Popen(
        command, stdout=theirs, stderr=-1, text=True, preexec_fn=hear, env=os.environ | {"TERM": "xterm"}
    ) as process:
        os.close(theirs)
        text = b""
        while b"loss 0.5" not in text:
            text += os.read(ours, 4096)
        os.close(ours)
        process.send_signal(signal.SIGHUP)
        _, said = process.communicate(timeout=40)
    assert process.returncode == 129 and "Traceback" not in said and (tmp_path / "saved").exists(), said
