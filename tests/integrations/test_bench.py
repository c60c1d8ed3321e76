"""bench.dropins proves before it times, and says which hosts are not here."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bench import dropins
from bench.device import Cpu
from bench.dropin_host import Step
from bench.results import read


def test_trl_both_ways() -> None:
    pytest.importorskip("trl", reason="of the extra [dev]")
    rows = dropins.compare("trl", "tiny", Cpu(), rounds=3, seconds=5.0)
    assert [row["variant"] for row in rows] == ["host", "drop-in"]
    assert rows[0]["times_wall"] == 1 and rows[1]["error"] <= dropins.TOLERANCE and rows[1]["rounds"] >= 3


def test_another_loss_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Step(lambda: torch.tensor(1.0), ()), Step(lambda: torch.tensor(1.001), ())
    assert "wrong: expected the host's loss within 1e-05 of it, got 1.0e-03" in status_of(steps, monkeypatch)


def test_other_gradients_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.ones(3, requires_grad=True)

    def step(factor: float) -> torch.Tensor:
        (factor * weight.sum()).backward()
        return torch.tensor(1.0)

    steps = Step(lambda: step(1.0), (weight,)), Step(lambda: step(1.01), (weight,))
    assert "wrong: expected the host's gradients within 1e-04 of their norm" in status_of(steps, monkeypatch)


def test_gradients_that_are_not_there_prove_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    step = Step(lambda: torch.tensor(1.0), (torch.ones(3, requires_grad=True),))
    assert "wrong: expected the host's gradients" in status_of((step, step), monkeypatch)


def test_a_host_that_breaks_is_named_and_the_command_ends_with_1(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def problem(size: str) -> tuple[Step, Step]:
        raise RuntimeError("no such kernel")

    monkeypatch.setitem(sys.modules, "tests_dropin", SimpleNamespace(problem=problem))
    monkeypatch.setattr(dropins, "HOSTS", {"one": "tests_dropin", "two": "no_such_host"})
    monkeypatch.setattr(sys, "argv", ["dropins", "--out", str(tmp_path / "rows.jsonl")])
    with pytest.raises(SystemExit, match="1"):
        dropins.main()
    rows = read(tmp_path / "rows.jsonl")
    assert [row["status"].split(":")[0] for row in rows] == ["failed", "absent"]
    assert "one" in capsys.readouterr().out


def test_a_peak_that_hides_in_what_is_resident_has_no_ratio() -> None:
    assert dropins.times_memory(2.0**22, 2.0**21) == 2
    assert dropins.times_memory(2.0**30, 0.0) is None and dropins.times_memory(0.0, 2.0**30) is None


def status_of(steps: tuple[Step, Step], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(sys.modules, "tests_dropin", SimpleNamespace(problem=lambda size: steps))
    monkeypatch.setitem(dropins.HOSTS, "trl", "tests_dropin")
    (row,) = dropins.compare("trl", "tiny", Cpu(), rounds=3, seconds=1.0)
    return str(row["status"])


def test_a_host_that_is_not_here_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(dropins.HOSTS, "trl", "no_such_host")
    (row,) = dropins.compare("trl", "tiny", Cpu(), rounds=3, seconds=1.0)
    assert row["status"] == "absent: No module named 'no_such_host'"
