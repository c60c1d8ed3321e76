"""metrics.jsonl on resume, timings, and what the console says."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest

from univg_fast.config import LogConfig
from univg_fast.structs import BadRecord
from univg_fast.train.bad import BadRecords
from univg_fast.train.console import clock, numbers
from univg_fast.train.metrics import MetricsLogger, eval_progress, trim_metrics
from univg_fast.train.phases import Phases
from univg_fast.train.stage import write_rollouts
from univg_fast.train.state import StageState

STEP = {"loss": 0.9123, "grad_norm": 0.41, "learning_rate": 1e-3, "group_tokens": 4000.0, "pack/fill": 0.96}


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def run(folder: Path, stage: str, first: int, last: int, **values: float) -> None:
    with MetricsLogger(folder, stage, 10, first, LogConfig()) as logger:
        for step in range(first, last):
            logger.log(step + 1, STEP | values)


def test_resumed_run_leaves_the_file_of_an_uninterrupted_one(tmp_path: Path) -> None:
    run(tmp_path, "sft", 0, 5, loss=1.0)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "sft", "step": 6, "lo')  # killed while writing
    run(tmp_path, "sft", 3, 7, loss=2.0)
    assert [(r["step"], r["loss"]) for r in rows(tmp_path)] == [
        *((s, 1.0) for s in (1, 2, 3)),
        *((s, 2.0) for s in (4, 5, 6, 7)),
    ]
    run(tmp_path, "grpo", 0, 2)
    run(tmp_path, "grpo", 1, 2)
    assert [(r["stage"], r["step"]) for r in rows(tmp_path)][-3:] == [("sft", 7), ("grpo", 1), ("grpo", 2)]


def test_num_tokens_counts_on_over_a_resume_and_events_tell_of_it(tmp_path: Path) -> None:
    run(tmp_path, "sft", 0, 5, dense_tokens=10.0)
    run(tmp_path, "sft", 3, 5, dense_tokens=7.0)
    run(tmp_path, "grpo", 0, 1, dense_tokens=1.0)
    assert [r["num_tokens"] for r in rows(tmp_path)] == [10, 20, 30, 37, 44, 1]
    (event,) = map(json.loads, (tmp_path / "events.jsonl").read_text().splitlines())
    assert (event["event"], event["stage"], event["step"]) == ("resumed", "sft", 3)


def test_a_full_disk_does_not_end_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")  # every write to it fails with ENOSPC
    run(tmp_path, "sft", 0, 2)
    shown = capsys.readouterr()
    assert "sft 2/10" in shown.out
    assert "metrics.jsonl could not be written, the run goes on" in shown.err and "No space left" in shown.err
    assert shown.err.count("metrics.jsonl could not be written, the run goes on") == 1, "told once"
    assert "metrics.jsonl could not be written 3 times" in shown.err, "two lines, and what was left at the end"
    (tmp_path / "events.jsonl").symlink_to("/dev/full")
    run(tmp_path, "sft", 1, 2)
    assert "events.jsonl could not be written, the run goes on" in capsys.readouterr().err
    (tmp_path / "bad_records.jsonl").symlink_to("/dev/full")
    BadRecords(0.1, StageState(), tmp_path, "sft").tell([BadRecord("a.json:1", "cut", "decode")])
    assert "bad_records.jsonl could not be written, the run goes on" in capsys.readouterr().err
    (tmp_path / "rollouts").mkdir()
    (tmp_path / "rollouts" / "grpo_000001.jsonl").symlink_to("/dev/full")
    write_rollouts(tmp_path, "grpo", 1, [{"uid": "a"}])
    assert "grpo_000001.jsonl could not be written, the run goes on" in capsys.readouterr().err


def test_what_is_no_number_is_null_as_json_has_it(tmp_path: Path) -> None:
    run(tmp_path, "sft", 0, 1, grad_norm=float("nan"), loss=float("-inf"))
    run(tmp_path, "sft", 1, 2)
    first, second = rows(tmp_path)
    assert (first["grad_norm"], first["loss"]) == (None, None) and second["grad_norm"] == 0.41


def test_trimming_an_unharmed_file_does_not_touch_it(tmp_path: Path) -> None:
    run(tmp_path, "sft", 0, 2)
    path = tmp_path / "metrics.jsonl"
    os.utime(path, (1, 1))
    trim_metrics(path, "sft", 2)
    trim_metrics(tmp_path / "absent.jsonl", "sft", 0)
    assert path.stat().st_mtime == 1


def test_each_line_is_on_disk_when_log_returns_and_phases_add_up(tmp_path: Path) -> None:
    phases = Phases()
    with MetricsLogger(tmp_path, "grpo", 10, 0, LogConfig()) as logger:
        for _ in range(2):
            with phases("gen"):
                time.sleep(0.02)
        with pytest.raises(KeyError), phases("score"):
            raise KeyError
        with phases("data"):
            time.sleep(0.01)
        logger.log(1, STEP, phases.take())
        (first,) = rows(tmp_path)
        counted = {"dense_tokens": 9000.0, "num_samples": 6.0, "packed_tokens": 5000.0}
        logger.log(2, STEP | counted, phases.take())  # a prompt's second copies in the rows are no throughput
    second = rows(tmp_path)[1]
    whole = second["timing_s/step"]
    assert second["tokens_per_second"] == pytest.approx(4000 / whole)
    assert second["dense_tokens_per_second"] == pytest.approx(9000 / whole)
    assert second["prompts_per_second"] == pytest.approx(6 / whole)
    assert first["stage"] == "grpo" and first["step"] == 1 and first["loss"] == 0.9123
    assert 0.04 <= first["timing_s/gen"] <= first["timing_s/step"] and "timing_s/score" in first
    assert "timing_s/gen" not in second, "a phase's time belongs to its own step"
    for row in (first, second):
        parts = [v for k, v in row.items() if k.startswith("timing_s/") and k != "timing_s/step"]
        assert sum(parts) == pytest.approx(row["timing_s/step"], rel=1e-9) and min(parts) >= 0
    assert second["timing_s/other"] == second["timing_s/step"]
    assert first["data_wait"] == pytest.approx(first["timing_s/data"] / first["timing_s/step"])
    assert 0.05 < first["memory/resident_gb"] < 100


def test_line_of_a_grpo_step() -> None:
    step = STEP | {
        "reward": 1.43, "miou": 0.52, "rewards/format/mean": 0.98, "frac_reward_zero_std": 0.19,
        "completions/mean_length": 121.2, "completions/clipped_ratio": 0.0, "kl": 0.0031,
        "learning_rate": 1e-6, "tokens_per_second": 31234.0, "num_samples": 24.0, "mfu": 0.413,
        "memory/allocated_gb": 60.2, "memory/reserved_gb": 71.3, "memory/resident_gb": 9.0,
        "timing_s/gen": 4.1, "timing_s/data": 0.01, "timing_s/update": 3.9,
        "timing_s/step": 8.2,
    }  # fmt: skip
    assert numbers(step) == (
        "loss 0.912 rew 1.43 iou 0.52 fmt 0.98 zstd 19% len 121 cut 0% kl 0.0031 gn 0.41 lr 1.0e-6 n 24"
        " | 31.2k tok/s fill 96% mfu 41% 71 GB | gen 4.1 update 3.9 = 8.2s"
    )
    assert "SKIPPED" in numbers(step | {"skipped": 1.0}) and "bad 2" in numbers(step | {"bad_records": 2.0})
    troubled = numbers(step | {"skipped": 0.0, "skipped_total": 3.0, "saves_failed": 1.0})
    assert "skipped so far 3" in troubled and "SAVES FAILED 1" in troubled and "SKIPPED" not in troubled


def test_clock() -> None:
    assert [clock(s) for s in (0, 59.6, 61, 3599, 3600, 86_461)] == [
        "0:00",
        "1:00",
        "1:01",
        "59:59",
        "1:00:00",
        "24:01:01",
    ]


def test_plain_lines_without_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with MetricsLogger(tmp_path, "sft", 4, 0, LogConfig(steps=2)) as logger:
        for step in range(1, 5):
            logger.log(step, STEP)
    with eval_progress("before") as progress:
        for done in range(0, 101, 10):
            progress(done, 100)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in lines] == [
        "sft 2/4",
        "sft 4/4",
        "eval before 0/100",
        "eval before 100/100",
    ]
    assert lines[1].endswith("eta 0:00") and "loss 0.912" in lines[1]
    assert not any("\r" in line or "\x1b" in line for line in lines)


def test_a_terminal_gets_a_bar_that_redraws(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from univg_fast.config import LogConfig\n"
        "from univg_fast.train.metrics import MetricsLogger\n"
        "with MetricsLogger(Path(sys.argv[1]), 'sft', 3, 1, LogConfig()) as logger:\n"
        "    [logger.log(step, {'loss': 0.5}) for step in (2, 3)]\n"
    )
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=theirs, env=environment) as process:
        os.close(theirs)
        text = b""
        while True:
            try:
                text += os.read(ours, 4096)
            except OSError:  # the other end is closed
                break
    os.close(ours)
    shown = text.decode()
    assert process.returncode == 0, shown
    assert "━" in shown and "3/3" in shown and "loss 0.5" in shown and "sft 3/3 |" not in shown
