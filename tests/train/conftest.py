"""Launching the multi-process parts of these tests: torchrun on a CPU, hard time limit."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.torchrun import torchrun

ROOT = Path(__file__).resolve().parents[2]
Launch = Callable[..., "subprocess.CompletedProcess[str]"]


def command_for(script: str, arguments: tuple[object, ...], world: int) -> tuple[list[str], dict[str, str]]:
    """Command line and environment; world=0 is plain python without torchrun."""
    command = [*torchrun(world), str(Path(__file__).parent / script), *map(str, arguments)]
    paths = [str(ROOT), str(ROOT / "kernels"), *filter(None, [os.environ.get("PYTHONPATH")])]
    ranks = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")
    environment = {key: value for key, value in os.environ.items() if key not in ranks}
    return command, environment | {
        "DS_ACCELERATOR": "cpu",
        "PYTHONPATH": os.pathsep.join(paths),
    }


def start_script(script: str, *arguments: object) -> subprocess.Popen[bytes]:
    """Start tests/train/SCRIPT as one plain process in its own process group and do not wait."""
    command, environment = command_for(script, arguments, world=0)
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, stdout=quiet, stderr=quiet, env=environment, start_new_session=True)


def launch_script(
    script: str, *arguments: object, world: int = 1, timeout: float = 400, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run tests/train/SCRIPT under torchrun with `world` ranks; world=0 runs it with plain python."""
    command, environment = command_for(script, arguments, world)
    environment |= variables
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            pytest.fail(f"{script} ran longer than {timeout} s\n{out[-2000:]}\n{err[-4000:]}")
    return subprocess.CompletedProcess(command, process.returncode, out, err)


@pytest.fixture(scope="session")
def launch() -> Launch:
    return launch_script


@pytest.fixture(scope="session")
def start() -> Callable[..., subprocess.Popen[bytes]]:
    return start_script
