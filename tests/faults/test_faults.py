"""What the section `fault:` says of itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from univg_fast.config.schema import FaultConfig
from univg_fast.train.faults import Faults
from univg_fast.train.phases import Phases


@pytest.mark.parametrize(
    ("phase", "step", "comes"), [("optim", 2, True), ("ref", 1, False), ("optim", 3, False), ("eval", 9, True)]
)
def test_a_fault_that_never_came_is_told_at_the_end(
    phase: str, step: int, comes: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, phases = FaultConfig(kind="slow", phase=phase, step=step, seconds=0.0), Phases()
    faults = Faults(config, phases, tmp_path)
    for phases.step in (1, 2):
        with phases("update"), phases("optim"):
            pass
    with phases("eval"):
        pass
    assert ("now: slow" in capsys.readouterr().err) == comes
    faults.tell_if_it_never_came()
    words = (
        f"never came: this start had no phase {phase} in step {step} of any stage; its phases were eval, optim, update"
    )
    assert (words in capsys.readouterr().err) != comes
    again = Faults(config, Phases(), tmp_path)  # the same command once more: it happened then
    capsys.readouterr()
    again.tell_if_it_never_came()
    assert ("its phases were none" in capsys.readouterr().err) != comes


def test_a_phase_of_no_step_is_told_without_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    faults = Faults(FaultConfig(kind="slow", phase="eval", step=9), Phases(), tmp_path)
    faults.tell_if_it_never_came()
    assert "this start had no phase eval in any stage; its phases were none" in capsys.readouterr().err


def test_fired_faults_are_noted(tmp_path: Path) -> None:
    """And not done again in that folder, so that the same command goes on."""

    def enter(step: int) -> Phases:
        phases = Phases()
        phases.stage, phases.step = "sft", step
        Faults(FaultConfig(kind="slow", seconds=0.0, step=2, times=2), phases, tmp_path)
        with phases("data"), phases("update"), phases("update", row=1):
            pass
        return phases

    def fired() -> list[str]:
        file = tmp_path / "fired_rank0.json"
        return json.loads(file.read_text()) if file.is_file() else []

    enter(1)
    assert fired() == []
    enter(2)
    enter(2)
    assert fired() == ["slow sft 2 update"]
    enter(3)
    enter(4)
    assert fired() == ["slow sft 2 update", "slow sft 3 update"]
