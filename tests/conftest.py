"""Running the real command in processes of its own, for the tests of whole runs."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest

from tests.torchrun import torchrun

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: a worker a core, and sums in the order of the ranks' own
import torch  # noqa: E402

# The same examples in each run, however slow the machine. Others: --hypothesis-profile=default, --hypothesis-seed=1.
LUCKLESS = {"derandomize": True, "deadline": None, "database": None}
hypothesis.settings.register_profile("luckless", **LUCKLESS, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("luckless")
ROOT = Path(__file__).resolve().parents[1]
BUILTIN = {
    "image_size": 84,
    "lattice": 3,
    "frame": 4,
    "object_cells": [1],
    "distractors": [1, 1],
    "num_colours": 3,
    "num_shapes": 2,
    "images_per_sample": [2, 3],
    "num_sft": 16,
    "num_grpo": 12,
    "num_eval": 6,
    "crops": 16,
}
SMALL = {
    "model.freeze_vision_tower": "false",
    "data.prompt_template": "short",
    **{f"data.builtin.{key}": json.dumps(value) for key, value in BUILTIN.items()},
    "pack.budget_tokens": "512",
    "sft.max_steps": "60",
    "sft.per_step_samples": "8",
    "sft.learning_rate": "2e-3",
    "grpo.max_steps": "3",
    "grpo.num_generations": "4",
    "grpo.prompts_per_step": "6",
    "grpo.max_completion_length": "64",
    "grpo.learning_rate": "1e-4",
    "evaluate.max_completion_length": "64",
    "save.steps": "0",
}


STATE: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {  # how each is read and set
    "grad mode": (torch.is_grad_enabled, torch.set_grad_enabled),
    "default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "threads": (torch.get_num_threads, torch.set_num_threads),
    "deterministic algorithms": (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
    "working directory": (os.getcwd, os.chdir),
}


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """What a test or its fixtures draw without a seed of their own does not depend on what ran before."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """What a test leaves changed, as one that fails half-way may, is put back for those after it, and named."""
    before, environment = {name: read() for name, (read, _) in STATE.items()}, dict(os.environ)
    yield
    left = [name for name, (read, _) in STATE.items() if read() != before[name]]
    for name in left:
        STATE[name][1](before[name])
    for name in environment:  # what is new is mostly a library's, at its import
        if os.environ.get(name) != environment[name] and name != "PYTEST_CURRENT_TEST":
            left.append(name)
            os.environ[name] = environment[name]
    if left:
        warnings.warn(f"{request.node.nodeid} leaves changed: {', '.join(sorted(left))}", stacklevel=1)


CLOCK = re.compile(r"^time$|timing_s/|per_second|tflops|mfu|memory|data_wait")  # metrics that no two runs share


def timeless(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl without what depends on the machine's speed and memory."""
    return [{key: value for key, value in row.items() if not CLOCK.search(key)} for row in rows]


class Run:
    """One finished run: its folder, what it printed, and its metrics."""

    def __init__(self, folder: Path, output: str, code: int) -> None:
        self.folder, self.output, self.code = folder, output, code

    def metrics(self, stage: str) -> list[dict[str, Any]]:
        lines = (self.folder / "metrics.jsonl").read_text().splitlines()
        return [row for row in map(json.loads, lines) if row["stage"] == stage]


def launch_command(*arguments: str, ranks: int = 0, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    """`-m univg_fast.train ARGUMENTS` on the CPU: with plain python, or under torchrun if `ranks` is given."""
    return launch_python("-m", "univg_fast.train", *arguments, ranks=ranks, timeout=timeout)


def launch_python(*words: str, ranks: int = 0, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    """The same for any script or module."""
    command = [*torchrun(ranks), *words]
    paths = [str(ROOT), str(ROOT / "kernels"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "PYTHONPATH": os.pathsep.join(paths)}
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:  # a hang is a failure, and its ranks must not live on
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            pytest.fail(f"still running after {timeout} s\n{out[-2000:]}\n{err[-4000:]}")
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def train(folder: Path, ranks: int = 1, check: bool = True, **settings: str) -> Run:
    """The demo recipe with the small settings, under torchrun; `settings` have __ for the dot."""
    given = SMALL | {"run.dir": str(folder)} | {k.replace("__", "."): v for k, v in settings.items()}
    done = launch_command("--config", "demo", *(f"--{k}={v}" for k, v in given.items()), ranks=ranks)
    run = Run(folder, done.stdout + done.stderr, done.returncode)
    assert not check or run.code == 0, run.output[-4000:]
    return run


@pytest.fixture(scope="session")
def launcher() -> Callable[..., subprocess.CompletedProcess[str]]:
    return launch_command


@pytest.fixture(scope="session")
def python_launcher() -> Callable[..., subprocess.CompletedProcess[str]]:
    return launch_python


@pytest.fixture(scope="session")
def trainer() -> Callable[..., Run]:
    return train
