"""SIGKILL at random moments of a save: the next start goes on from the newest complete checkpoint, and none is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.parametrize("kills", [8, pytest.param(52, marks=pytest.mark.drill)])
def test_kills_while_saving_lose_nothing(tmp_path: Path, kills: int) -> None:
    environment = os.environ | {"DS_ACCELERATOR": "cpu"}
    command = [sys.executable, str(HERE / "kill_worker.py"), str(kills), str(tmp_path), "1"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=700)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert done.returncode == 0 and lines, done.stdout[-2000:] + done.stderr[-4000:]
    report = json.loads(lines[0].removeprefix("RESULT "))
    assert report["kills"] >= kills and report["steps"] >= 3
    assert report["half_written"] >= kills / 4, "too few kills hit a save in progress: the test did not test"
    assert report["lost"] == [], "[zero stage, step of the last save that had returned, step that the next start had]"
    assert report["wrong"] == [], "the weights are those that were saved at that step"
