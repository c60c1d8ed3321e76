"""bench.dropins proves before it times, and says which hosts are not here."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

from bench import dropins
from bench.device import Cpu


def test_trl_both_ways() -> None:
    pytest.importorskip("trl", reason="of the extra [dev]")
    rows = dropins.compare("trl", "tiny", Cpu(), rounds=3, seconds=5.0)
    assert [row["variant"] for row in rows] == ["host", "drop-in"]
    assert rows[0]["times_wall"] == 1 and rows[1]["error"] <= dropins.TOLERANCE and rows[1]["rounds"] >= 3


def test_another_loss_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = lambda size: (lambda: torch.tensor(1.0), lambda: torch.tensor(1.001))  # noqa: E731
    monkeypatch.setitem(sys.modules, "tests_dropin", SimpleNamespace(problem=problem))
    monkeypatch.setitem(dropins.HOSTS, "trl", "tests_dropin")
    with pytest.raises(SystemExit, match=r"trl: expected the host's loss 1 within 1e-05 of it, got 1\.001"):
        dropins.compare("trl", "tiny", Cpu(), rounds=3, seconds=1.0)


def test_a_host_that_is_not_here_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(dropins.HOSTS, "trl", "no_such_host")
    (row,) = dropins.compare("trl", "tiny", Cpu(), rounds=3, seconds=1.0)
    assert row["status"] == "absent: No module named 'no_such_host'"
