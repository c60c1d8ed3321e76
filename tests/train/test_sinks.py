"""Every sink gets the same numbers; what cannot work is refused before a run starts; trackers go on after a resume."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from univg_fast.config import LogConfig
from univg_fast.train import sinks
from univg_fast.train.metrics import MetricsLogger
from univg_fast.train.sheets import sheets

ROOT = Path(__file__).resolve().parents[2]
STEP = {"loss": 0.9123, "learning_rate": 1e-3, "group_tokens": 4000.0, "dense_tokens": 9000.0}


def run(folder: Path, stage: str, first: int, last: int, log: LogConfig) -> None:
    with MetricsLogger(folder, stage, 10, first, log, settings={"run": {"seed": 42}}) as logger:
        for step in range(first, last):
            logger.log(step + 1, STEP | {"loss": step + 0.5})


def test_tensorboard_gets_the_same_numbers(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(tmp_path, "sft", 0, 2, LogConfig(tensorboard=True))
    events = EventAccumulator(str(tmp_path / "tb" / "sft")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 0.5), (2, 1.5)]
    assert {"timing_s/step", "tokens_per_second", "num_tokens"} <= set(events.Tags()["scalars"])


def test_a_resumed_run_goes_on_in_the_same_wandb_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="of the extra [track]")
    more = {"WANDB_SILENT": "true", "WANDB_CACHE_DIR": str(tmp_path), "WANDB_X_SERVICE_WAIT": "300"}
    for key, value in {"WANDB_MODE": "offline", **more}.items():
        monkeypatch.setenv(key, value)
    log = LogConfig(wandb="drill")
    sinks.check(log)
    run(tmp_path, "sft", 0, 3, log)
    for stage, *steps in (("sft", 2, 4), ("grpo", 0, 1)):
        time.sleep(1.1)  # wandb names its folders by the second
        run(tmp_path, stage, *steps, log)
    files = sorted(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(files) == 3 and len({path.name for path in files}) == 1, "one id, which a sync makes one run of"
    first, _, last = (path.read_bytes() for path in files)
    assert b"sft/loss" in first and b"sft/num_tokens" in first and b"drill" in first and b"seed" in first
    assert b"grpo/loss" in last and b"sft/loss" not in last


def test_a_resumed_run_goes_on_in_the_same_trackio_run(tmp_path: Path) -> None:
    pytest.importorskip("trackio", reason="of the extra [track]")
    code = (
        "import sys; from pathlib import Path; from tests.train.test_sinks import LogConfig, run\n"
        "[run(Path(sys.argv[1]) / 'mine', 'sft', *steps, LogConfig(trackio='drill')) for steps in ((0, 3), (3, 5))]\n"
    )
    (tmp_path / "mine").mkdir()
    environment = os.environ | {"TRACKIO_DIR": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, cwd=ROOT, env=environment, timeout=400)
    with sqlite3.connect(tmp_path / "drill.db") as base:
        found = base.execute("select run_name, step, metrics from metrics order by step").fetchall()
    assert {name for name, _, _ in found} == {f"mine-{sinks.run_id(tmp_path / 'mine')}"}
    assert [step for _, step, _ in found] == [1, 2, 3, 4, 5] and all(b"sft/loss" in text for _, _, text in found)


def test_tensorboard_on_a_full_disk_does_not_end_the_run(tmp_path: Path) -> None:
    code = (
        "import sys, resource, signal, time; from pathlib import Path\n"
        "from tests.train.test_sinks import LogConfig, MetricsLogger, STEP\n"
        "with MetricsLogger(Path(sys.argv[1]), 'sft', 900, 0, LogConfig(tensorboard=True, steps=100)) as logger:\n"
        "    logger.log(1, STEP)\n"
        "    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"  # no file may grow any more
        "    for step in range(2, 901): logger.log(step, STEP)\n"
        "print('done')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0 and done.stdout.endswith("done\n"), done.stderr
    for name in (f"{tmp_path}/metrics.jsonl", "log.tensorboard"):
        told = [line for line in done.stderr.splitlines() if name in line]
        assert [line.partition(" could not be written")[2].partition(":")[0][:7] for line in told][:1] == [", the r"]
        assert len(told) == 2 and told[1].endswith(" times"), "the first error, and their number at the end"


@pytest.mark.parametrize("act", ["open", "log", "close"])
def test_no_error_of_a_sink_comes_through(act: str, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(which: str) -> None:
        if which == act:
            raise ConnectionResetError("its process is gone")

    def make() -> sinks.Sink:
        fail("open")
        return sinks.Sink(lambda row: fail("log"), lambda failed: fail("close"))

    sink = sinks.guarded("log.wandb", make)
    for step in range(3):
        sink.log({"step": step})
    sink.close(False)
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "warning: log.wandb could not be written, the run goes on: its process is gone"
    assert told[1:] == (["warning: log.wandb could not be written 3 times"] if act == "log" else [])


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_package_that_is_not_there_is_told_before_the_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, sinks.MODULES[name], None)  # importing it now fails as if it were not installed
    with pytest.raises(ValueError, match=rf"log\.{name}: expected the package {name}.*pip install {name}"):
        sinks.check(LogConfig(**{name: True if name == "tensorboard" else "project"}))
    sinks.check(LogConfig())


def test_wandb_without_an_account_is_told_before_the_run(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="of the extra [track]")
    code = "from univg_fast.train.sinks import check, LogConfig; check(LogConfig(wandb='drill'))"
    kept = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    environment = kept | {"HOME": str(tmp_path), "WANDB_SILENT": "true"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode != 0
    assert "log.wandb: expected an account, got none; run `wandb login`" in done.stderr


def test_lines_of_rollouts_are_made_only_for_a_sheet(tmp_path: Path) -> None:
    """A step's texts, boxes and rounded numbers cost as much as the rest of its host work."""
    made: list[int] = []
    with sheets(tmp_path, "grpo", 5) as write:
        for step in range(1, 7):
            write(step, lambda step=step: made.append(step) or [])
    with sheets(tmp_path, "grpo", 0) as write:
        write(5, lambda: made.append(0) or [])
    assert made == [5]
