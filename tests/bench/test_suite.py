"""The one command: its parts' time, what it does with parts that fail or hang, and the one file."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.cases import all_cases
from bench.compare import CASES
from bench.suite import MINUTES, OPS_CPU, PARTS, command, run, run_part

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("device", PARTS)
def test_the_parts_fit_the_minutes_and_are_commands(device: str) -> None:
    parts = PARTS[device]
    assert sum(part.seconds for part in parts) <= 60 * MINUTES[device]
    assert parts[0].name == "checks" and parts[-1].name == "ops"
    for part in parts:
        words = command(part, device, "full", Path("x"), 100.0)
        assert (ROOT / f"{words[2].replace('.', '/')}.py").is_file() and "--out" in words


@pytest.mark.parametrize(
    ("device", "beginning"), [("cpu", b) for b in OPS_CPU] + [(d, b) for d in CASES for b in CASES[d]]
)
def test_a_beginning_is_that_of_a_case(device: str, beginning: str) -> None:
    assert any(case.name.startswith(beginning) for case in all_cases(device))


def lives(pid: int) -> bool:
    """Neither gone nor a zombie that nobody has asked about."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_part_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    told, sleep = tmp_path / "pid", "import time; time.sleep(120)"
    starts = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {sleep!r}]); "
    starts += f"open({str(told)!r}, 'w').write(str(p.pid)); p.wait()"
    began = time.monotonic()
    assert run_part([sys.executable, "-c", starts], 10.0) == "ended after 10 s"
    assert time.monotonic() - began < 60
    while lives(int(told.read_text())) and time.monotonic() - began < 60:
        time.sleep(0.01)  # a kill takes its moment
    assert not lives(int(told.read_text()))
    assert run_part([sys.executable, "-c", "raise SystemExit(3)"], 60) == "ended with 3"
    assert run_part([sys.executable, "-c", ""], 60) == ""


def test_nothing_is_timed_where_checks_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def failing(words: list[str], seconds: float) -> str:
        ran.append(words[2])
        return "ended with 1"

    monkeypatch.setattr("bench.suite.run_part", failing)
    assert run("cpu", list(PARTS["cpu"]), "full", 600.0) == ([], {"checks": "ended with 1"})
    assert ran == ["bench.ops"]


def test_the_command_writes_one_file(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    words = ["bench.suite", "--size", "tiny", "--only", "packing", "ops", "--minutes", "3", "--out", str(out)]
    done = subprocess.run([sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert {row.get("bench", row.get("op")) for row in rows} == {"packing", "grpo_loss", "box_iou"}
    assert all(row["commit"] and row["hardware"] and row["versions"]["torch"] and row["date"] for row in rows)
    assert f"{len(rows)} rows in {out}" in done.stdout
