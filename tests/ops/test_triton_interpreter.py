"""Runs triton_suite*.py where its kernels can run: in Triton's interpreter on the CPU, and on a GPU if there is one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is published for Linux only")
SUITES = [path.name for path in sorted(Path(__file__).parent.glob("triton_suite*.py"))]


def run(suite: str, interpret: bool) -> None:
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    # The session's import path, as the suite must see this checkout (or the installed package) just as we do.
    env |= {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    if interpret:
        env["TRITON_INTERPRET"] = "1"
    folder = Path(__file__).parent
    options = ["-q", "-p", "no:cacheprovider", "-p", "ops.triton_device"]
    command = [sys.executable, "-m", "pytest", *options, str(folder / suite)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=folder.parents[1])
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-2000:]}"


@pytest.mark.parametrize("suite", SUITES)
def test_faces_in_the_interpreter(suite: str) -> None:
    run(suite, interpret=True)


@pytest.mark.gpu
@pytest.mark.parametrize("suite", SUITES)
def test_faces_on_the_gpu(suite: str) -> None:
    run(suite, interpret=False)
