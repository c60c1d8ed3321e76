"""A few records of the built-in data, a small random model in a folder, and processes that evaluate it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.torchrun import torchrun

ROOT = Path(__file__).resolve().parents[2]
Launch = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data/eval.json of eight records and model/, whose weights are random."""
    from univg_fast.data.builtin import BuiltinConfig, write_builtin
    from univg_fast.data.prompts import corpus
    from univg_fast.data.records import read_records
    from univg_fast.data.samples import make_processor
    from univg_fast.data.tokenizer import build_tokenizer
    from univg_fast.model import load_model

    folder = tmp_path_factory.mktemp("small")
    config = BuiltinConfig(image_size=84, lattice=3, object_cells=(1,), crops=8, num_sft=8, num_grpo=4, num_eval=8)
    files = write_builtin(folder / "data", config)
    tokenizer = build_tokenizer(corpus(read_records(files["sft"])[0]))
    load_model("qwen2_vl_tiny", vocab=tokenizer.get_vocab(), seed=3).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    make_processor(tokenizer).image_processor.save_pretrained(folder / "model")
    return folder


def environment(more: Sequence[Path] = ()) -> dict[str, str]:
    paths = [str(ROOT), str(ROOT / "kernels"), *filter(None, [os.environ.get("PYTHONPATH")]), *map(str, more)]
    ranks = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")
    return {key: value for key, value in os.environ.items() if key not in ranks} | {
        "DS_ACCELERATOR": "cpu",
        "PYTHONPATH": os.pathsep.join(paths),
    }


def command(*words: Any, ranks: int = 0) -> list[str]:
    """python or torchrun with these words."""
    return [*torchrun(ranks), *map(str, words)]


@pytest.fixture(scope="session")
def launch() -> Launch:
    def run(*words: Any, ranks: int = 0, timeout: float = 400) -> subprocess.CompletedProcess[str]:
        given = {"cwd": ROOT, "env": environment(), "capture_output": True, "text": True, "timeout": timeout}
        return subprocess.run(command(*words, ranks=ranks), **given)

    return run


@pytest.fixture(scope="session")
def start() -> Callable[..., subprocess.Popen[bytes]]:
    """The same without waiting, in a process group of its own. `paths`: more folders of packages."""

    def run(*words: Any, ranks: int = 0, paths: Sequence[Path] = ()) -> subprocess.Popen[bytes]:
        given: dict[str, Any] = {"cwd": ROOT, "env": environment(paths), "start_new_session": True}
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return subprocess.Popen(command(*words, ranks=ranks), **given, **quiet)

    return run
