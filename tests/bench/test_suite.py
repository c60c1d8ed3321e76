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
from bench.results import read
from bench.suite import LOOK, MINUTES, OPS_CPU, PARTS, command, gathered, limit_of, run, run_part

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("device", PARTS)
def test_the_parts_fit_the_minutes_and_are_commands(device: str) -> None:
    parts = PARTS[device]
    assert sum(part.seconds for part in parts) <= 60 * MINUTES[device]
    assert parts[0].name == "checks" and parts[1 if device == "cuda" else -1].name == "ops"
    seconds = 60 * MINUTES[device]
    for i, part in enumerate(parts):  # where each takes all that it may, none has less than it asks for
        assert limit_of(i, parts, seconds) >= part.seconds
        seconds -= limit_of(i, parts, seconds)
    assert abs(seconds) < 1e-6
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
    assert run_part([sys.executable, "-c", starts], 10.0) is None
    assert time.monotonic() - began < 100
    while lives(int(told.read_text())) and time.monotonic() - began < 200:
        time.sleep(0.01)  # a kill takes its moment
    assert not lives(int(told.read_text()))
    assert run_part([sys.executable, "-c", "raise SystemExit(3)"], 60) == 3
    assert run_part([sys.executable, "-c", ""], 60) == 0


def test_rows_are_in_the_file_while_their_part_runs(tmp_path: Path) -> None:
    made, out = tmp_path / "made", tmp_path / "out"
    script = f"import time; open({str(made)!r}, 'w').write('{{\"a\": 2}}\\n'); time.sleep(120)"
    seen: list[bool] = []

    def look() -> None:
        gathered([{"a": 1}], made, out)
        seen.append(out.exists() and read(out) == [{"a": 1}, {"a": 2}])

    assert run_part([sys.executable, "-c", script], 3 * LOOK, look) is None
    assert seen[-1] and not list(tmp_path.glob("*.new"))


@pytest.mark.parametrize(("code", "told"), [(1, "ended with 1"), (None, "ended after 30 s")])
def test_nothing_is_timed_where_checks_fail(monkeypatch: pytest.MonkeyPatch, code: int | None, told: str) -> None:
    """Checks that were only slow do not keep the other parts, which have proofs of their own, from running."""
    ran: list[str] = []

    def failing(words: list[str], *_: object) -> int | None:
        ran.append(words[2])
        return code if len(ran) == 1 else 0

    monkeypatch.setattr("bench.suite.run_part", failing)
    assert run("cpu", list(PARTS["cpu"]), "full", 600.0, None) == (0, {"checks": told})
    assert len(ran) == (1 if code else len(PARTS["cpu"])) and ran[0] == "bench.ops"


def test_the_command_writes_one_file(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    words = ["bench.suite", "--size", "tiny", "--only", "packing", "ops", "--minutes", "3", "--out", str(out)]
    done = subprocess.run([sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert {row.get("bench", row.get("op")) for row in rows} == {"packing", "grpo_loss", "box_iou"}
    assert all(row["commit"] and row["hardware"] and row["versions"]["torch"] and row["date"] for row in rows)
    assert f"{len(rows)} rows in {out}" in done.stdout
