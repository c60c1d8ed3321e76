"""The real command on two ranks, with something going wrong on one of them: injected, or done to it from outside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import ROOT, SMALL, Run, timeless
from tests.torchrun import torchrun

# Two stages of a few short steps. The rewards tell random answers apart, so that there is something to learn.
SHORT = {
    "sft.max_steps": "4",
    "sft.per_step_samples": "4",
    "grpo.max_steps": "3",
    "grpo.num_generations": "2",
    "grpo.prompts_per_step": "2",
    "grpo.max_completion_length": "16",
    "grpo.difficulty": "none",
    "grpo.learning_rate": "1e-3",
    "rewards.terms": '{"repetition": 1.0, "length": 0.5, "iou": 1.0}',
    "evaluate.max_completion_length": "8",
    "evaluate.max_samples": "2",
    "run.hang_timeout_s": "120",
}


def hear() -> None:
    """In a new process: signals that nohup or a shell's background job has it ignore arrive again."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def keyed(settings: dict[str, str]) -> dict[str, str]:
    return {key.replace("__", "."): value for key, value in settings.items()}


@pytest.fixture(scope="session")
def drill(trainer: Callable[..., Run]) -> Callable[..., Run]:
    """A short run on two ranks; `settings` as the trainer's. Its `code` is torchrun's."""

    def run(folder: Path, **settings: str) -> Run:
        given = {key.replace(".", "__"): value for key, value in SHORT.items()} | settings
        return trainer(folder, ranks=2, check=False, **given)

    return run


@pytest.fixture(scope="session")
def whole(drill: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run that nothing happened to."""
    run = drill(tmp_path_factory.mktemp("whole") / "run")
    assert run.code == 0, run.output[-4000:]
    return run


def assert_same_numbers(run: Run, whole: Run, stages: tuple[str, ...] = ("sft", "grpo")) -> None:
    """Every metric of every step, the weights and the evaluations, to the last bit."""
    for stage in stages:
        got, want = timeless(run.metrics(stage)), timeless(whole.metrics(stage))
        assert [row["step"] for row in got] == [row["step"] for row in want]
        for mine, theirs in zip(got, want, strict=True):
            assert json.dumps(mine, sort_keys=True) == json.dumps(theirs, sort_keys=True)
        weights, others = (load_file(r.folder / "hf" / stage / "model.safetensors") for r in (run, whole))
        assert all(torch.equal(weights[name], others[name]) for name in others)
    for name in ("before", *stages):
        answers, theirs = (read_answers(r.folder / "eval" / f"{name}.jsonl") for r in (run, whole))
        assert answers == theirs


def read_answers(path: Path) -> list[tuple[Any, Any]]:
    return [(row["question"], row["text"]) for row in map(json.loads, path.read_text().splitlines())]


class Started:
    """A run that is under way: its output so far, its processes, and its end."""

    def __init__(self, folder: Path, ranks: int, settings: dict[str, str]) -> None:
        self.folder, self.log = folder, folder.with_suffix(".log")
        command = torchrun(ranks)
        given = SMALL | SHORT | {"run.dir": str(folder)} | keyed(settings)
        command += ["-m", "univg_fast.train", "--config", "demo", *(f"--{k}={v}" for k, v in given.items())]
        paths = [str(ROOT), str(ROOT / "kernels"), *filter(None, [os.environ.get("PYTHONPATH")])]
        more = {"DS_ACCELERATOR": "cpu", "PYTHONPATH": os.pathsep.join(paths)}
        self.began = time.monotonic()
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=os.environ | more,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=hear,
            )

    @property
    def output(self) -> str:
        return self.log.read_text()

    def wait_for(self, text: str, timeout: float = 400) -> None:
        deadline = time.monotonic() + timeout
        while text not in self.output:
            assert self.process.poll() is None, f"ended before it said {text!r}:\n{self.output[-4000:]}"
            assert time.monotonic() < deadline, f"did not say {text!r} in {timeout} s:\n{self.output[-4000:]}"
            time.sleep(0.05)

    def ranks(self) -> list[int]:
        """Process ids by rank."""
        pid = self.process.pid
        return sorted(int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split())

    def end(self, timeout: float) -> int:
        """torchrun's exit code."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            pytest.fail(f"still running after {timeout} s:\n{self.output[-6000:]}")

    def clean_up(self) -> None:
        if self.process.poll() is None:
            pids = [*self.ranks(), self.process.pid]
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            self.process.wait()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Started]]:
    """start(ranks=2, name="run", **settings) -> a Started; what is left of it is killed after the test."""
    running: list[Started] = []

    def go(ranks: int = 2, name: str = "run", **settings: str) -> Started:
        running.append(Started(tmp_path / name, ranks, settings))
        return running[-1]

    yield go
    for each in running:
        each.clean_up()
