"""What is said where a stage cannot go on, and stacks of a process that Python itself cannot stop."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch

from tests.tiny import random_group, tiny_model
from univg_fast.config import Config, DeepSpeedConfig, PackConfig, load_config
from univg_fast.data.samples import make_processor
from univg_fast.data.tokenizer import build_tokenizer
from univg_fast.packing import build_row
from univg_fast.train import manifest, stopping
from univg_fast.train.crash import out_of_memory, out_of_memory_told
from univg_fast.train.phases import Phases
from univg_fast.train.road import held_out
from univg_fast.train.setup import Inputs


def after_a_row() -> Phases:
    """Phases of a step whose update came upon a row of known size, which did not fit."""
    model, phases = tiny_model(), Phases()
    phases.follow(model)
    phases.stage, phases.step = "grpo", 3
    row = build_row([random_group(np.random.default_rng(0), [(4, 4)], [3, 2])], model.family)

    def head(hidden: torch.Tensor, weight: torch.Tensor) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB.\nmore")

    with pytest.raises(torch.OutOfMemoryError), phases("update", row=0):
        model(row, head)
    assert phases.row == (row.num_tokens, 16)
    return phases


def test_out_of_memory_says_which_row_and_what_to_set() -> None:
    phases, error = after_a_row(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB.\nmore")
    tokens = phases.row[0]
    small = replace(Config(), pack=PackConfig(budget_tokens=tokens))
    said = str(out_of_memory(error, phases, small))
    assert said.startswith("rank 0: out of GPU memory in phase update of grpo step 3; ")
    assert f"the last row has {tokens} tokens and 16 patches" in said and "Tried to allocate 3.00 GiB." in said
    assert f"pack.budget_tokens={tokens}" in said and f"set it to {tokens // 2}" in said and "\n" not in said
    assert "gradient_checkpointing" in said
    alone = str(out_of_memory(error, phases, replace(Config(), pack=PackConfig(budget_tokens=1))))
    assert "one sample alone is longer than pack.budget_tokens=1: set data.max_length" in alone
    phases.name = "gen"
    assert "rollout.cache_gib=8" in str(out_of_memory(error, phases, Config()))
    phases.name = "eval"
    assert "evaluate.prompts_per_batch=16" in str(out_of_memory(error, phases, Config()))
    sharded = replace(Config(), deepspeed=DeepSpeedConfig(zero_stage=3))
    for phases.name, knob in (("sync", "2 needs no copy"), ("optim", "offload_optimizer")):
        said = str(out_of_memory(error, phases, sharded))
        assert knob in said and "higher than" not in said
    phases.name = "data"
    said = str(out_of_memory(error, phases, Config()))
    assert "data.max_pixels" in said and "grpo.dynamic_sampling_max_draws" in said and "zero_stage" not in said
    phases.stage = "sft"
    assert "data.max_pixels or pack.budget_tokens" in str(out_of_memory(error, phases, Config()))


@pytest.mark.parametrize(
    ("phase", "told"),
    [
        ("eval", r"in phase eval of before .*cache_gib=.*evaluate\.prompts_per_batch="),
        ("load", r"in phase load of before .*whole, before ZeRO divides it: model\.torch_dtype=bfloat16"),
    ],
)
def test_out_of_memory_in_an_evaluation_says_what_to_set(
    phase: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopping, "_finishing", False)  # as it was, afterwards
    record = random_group(np.random.default_rng(0), [(4, 4)], [3]).sample.record
    processor = make_processor(build_tokenizer(["a box"]))
    config, phases = load_config(["--config", "demo", f"--run.dir={tmp_path}"]), Phases()

    def full(name: str, step: int) -> None:
        if name == phase:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    phases.watchers.append(full)
    inputs = Inputs({"eval": [record]}, processor)
    with pytest.raises(ValueError, match=told), out_of_memory_told(phases, config):
        held_out("before", "qwen2_vl_tiny", config, inputs, tmp_path, torch.device("cpu"), phases)


STUCK = """
import ctypes, sys
from pathlib import Path
from univg_fast.train.phases import Phases
from univg_fast.train.watchdog import Watchdog
phases = Phases()
phases.stage, phases.step = "sft", 7
with Watchdog(phases, float(sys.argv[2]), Path(sys.argv[1])), phases("update"):
    (ctypes.PyDLL if "locked" in sys.argv else ctypes.CDLL)(None).sleep(600)
"""


def stuck(folder: Path, timeout_s: float, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", STUCK, str(folder), str(timeout_s), *words]
    return subprocess.Popen(command, stdout=-1, stderr=-1, text=True)


def test_a_single_process_that_hangs_names_itself(tmp_path: Path) -> None:
    (tmp_path / "stacks_rank0.txt").write_text("of last night")
    process = stuck(tmp_path, 2.0)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 1
    assert re.match(r"rank 0 of 1 hangs: phase update of sft step 7, no progress for \d+\.\d s", err), err
    assert 'File "<string>", line 9' in (tmp_path / "stacks_rank0.txt").read_text()
    assert (tmp_path / "stacks_rank0_old_1.txt").read_text() == "of last night"


def test_a_library_that_keeps_pythons_lock_leaves_its_stack(tmp_path: Path) -> None:
    """No thread of Python's runs any more; the other ranks see this one fall silent."""
    process, stacks = stuck(tmp_path, 1.0, "locked"), tmp_path / "stacks_rank0.txt"
    try:
        deadline = time.monotonic() + 200
        while not (stacks.is_file() and "line 9" in stacks.read_text()):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        process.kill()
        process.communicate()


BUSY = """
import os, sys, time
from pathlib import Path
from univg_fast.train.phases import Phases
from univg_fast.train.watchdog import Watchdog
folder, phases = Path(sys.argv[1]), Phases()
with Watchdog(phases, 7.0, folder), phases(sys.argv[2]):
    file = os.open(folder / "large", os.O_RDWR | os.O_CREAT)
    for number in range(10):
        os.write(file, bytes(2**19))
        time.sleep(0.5)
    for number in range(10):
        os.pread(file, 2**19, number * 2**19)
        time.sleep(0.5)
print("done")
"""


@pytest.mark.parametrize(("phase", "code"), [("save", 0), ("update", 1)])
def test_a_large_file_that_grows_or_is_read_is_no_hang(tmp_path: Path, phase: str, code: int) -> None:
    """Longer than the limit, within what could be one call of a library. In a step it would be one."""
    command = [sys.executable, "-c", BUSY, str(tmp_path), phase]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == code, done.stderr
    assert ("done" in done.stdout) == (code == 0) and ("hangs: phase update" in done.stderr) == (code == 1)


def test_bringing_a_file_to_the_disk_gives_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "PIECE_BYTES", 2**16)
    (tmp_path / "large").write_bytes(bytes(10 * 2**16 + 1))
    beats: list[bool] = []
    hashing, hash_of = Event(), manifest._size_and_hash

    def told(path: Path) -> dict[str, Any]:
        hashing.set()
        return hash_of(path)

    monkeypatch.setattr(manifest, "_size_and_hash", told)
    names = manifest.names(tmp_path)
    (entry,) = manifest.sync_share(tmp_path, names, lambda: beats.append(hashing.wait(10))).values()
    assert entry == {"size": 10 * 2**16 + 1, "sha256": sha256(bytes(10 * 2**16 + 1)).hexdigest()}
    assert len(beats) >= 11 and all(beats), "it is hashed while it is brought to the disk, not after it"
