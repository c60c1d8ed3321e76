"""The scripts that time steps, at a size that takes a moment: each proves, then times, and prints what it promises."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import step, step_packed
from bench.rollout import Size
from bench.step_problem import make_problem

ROOT = Path(__file__).resolve().parents[2]
needs_trl = pytest.mark.skipif(find_spec("trl") is None, reason="TRL comes with the extra [bench]")


def run(script: str, *options: str) -> str:
    """What `python -m bench.SCRIPT` prints; it must end with 0, so its own proof has held."""
    words = [sys.executable, "-m", f"bench.{script}", *options]
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def timed(script: str, out: Path) -> tuple[str, dict[str, dict[str, Any]]]:
    """(what a timing at size tiny prints, its rows by variant); each row is stamped, and its ratio the printed one."""
    printed = run(script, "--size", "tiny", "--rounds", "2", "--budget", "20", "--out", str(out))
    rows = {row["variant"]: row for row in map(json.loads, out.read_text().splitlines())}
    for name, row in rows.items():
        assert row["commit"] and row["hardware"] and row["versions"]["torch"], name
        assert row["rounds"] >= 2 and 0 < row["wall_p20_s"] <= row["wall_p50_s"] <= row["wall_p80_s"], name
        assert name in printed and all(f"{row[f'times_{clock}']:.2f}" in printed for clock in ("wall", "cpu")), name
    return printed, rows


def test_the_update_with_each_lever_off_in_turn(tmp_path: Path) -> None:
    printed, rows = timed("step", tmp_path / "rows.jsonl")
    assert all(word in printed for word in ("seconds", "x separate", "cost of off", "peak MiB", "error"))
    assert rows["separate sequences"]["times_wall"] == rows["univg"]["cost"] == 1
    levers = {"prompt not shared", "vision not once", "logits of all tokens", "not packed", "loss not fused"}
    assert rows.keys() == levers | {"separate sequences", "univg"}
    assert max(row["error"] for row in rows.values()) <= 1e-4


def test_the_rollout_against_generate(tmp_path: Path) -> None:
    printed, rows = timed("rollout", tmp_path / "rows.jsonl")
    assert "greedy tokens equal" in printed
    assert max(row["times_wall"] for name, row in rows.items() if name.startswith("generate")) == 1


def test_the_packing_of_the_published_sample() -> None:
    printed = run("packing", "--windows", "1")
    assert all(word in printed for word in ("window 512", "window   0", "8 ranks", "fill", "plan of"))


@needs_trl
def test_a_whole_step_against_trl(tmp_path: Path) -> None:
    printed, rows = timed("trl_step", tmp_path / "rows.jsonl")
    assert all(word in printed for word in ("prompts/s", "peak MiB", "rollout", "reward", "ref", "update", "rest"))
    assert rows.keys() == {"univg", "trl", "trl, head on responses"}
    assert max(row["times_wall"] for name, row in rows.items() if name != "univg") == 1  # the faster one is the measure
    for row in rows.values():
        assert row["errors"].keys() >= {"loss", "grad_norm", "loss, head on responses", "reward", "kl"}
        assert max(row["errors"].values()) <= 1e-4
        assert all(0 < seconds < row["wall_p80_s"] for seconds in row["phases_s"].values())


def test_in_bfloat16_the_proof_goes_by_what_bfloat16_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deep enough that gradients of a right variant differ by percents; one with other advantages is refused."""
    size = Size(prompts=2, images=1, side=8, tokens=8, group=4, hidden=64, layers=12, vocab=300)
    problem = make_problem(size, torch.device("cpu"), torch.bfloat16)
    assert 0.02 < max(step.prove(problem, ["univg", "loss not fused"]).values()) < 0.3
    assert problem.plain.dtype == problem.plain_reference.dtype == torch.bfloat16
    loss = step_packed._loss

    def wrong(p: Any, row: Any, features: Any, advantages: torch.Tensor, *more: Any) -> torch.Tensor:
        return loss(p, row, features, advantages.flip(0), *more)

    monkeypatch.setattr(step_packed, "_loss", wrong)
    with pytest.raises(SystemExit, match="univg: loss or a gradient is off by"):
        step.prove(problem, ["univg"])
