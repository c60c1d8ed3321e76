"""What bench/scale_counts.py says is moved, counted in a layer's passes and in DeepSpeed's own steps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.scale_counts import BACKWARD, FORWARD, MOVED


def counted_by(script: str, launcher: Callable[..., Any], ranks: int = 0) -> Any:
    done = launcher(str(Path(__file__).with_name(script)), ranks=ranks)
    assert done.returncode == 0, done.stderr
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))


def test_what_a_layer_moves_beside_its_products(python_launcher: Callable[..., Any]) -> None:
    counted = counted_by("layer_traffic.py", python_launcher)
    hidden = counted["hidden"]
    for name, way in (("forward", FORWARD), ("backward", BACKWARD)):
        said = way.hidden * hidden + way.intermediate * 3 * hidden  # as wide as bench.rollout makes it
        assert counted[name] == pytest.approx(said, rel=0.05), way


@pytest.mark.parametrize("ranks", [0, 2], ids=["one rank", "two ranks"])
def test_what_deepspeed_moves(ranks: int, python_launcher: Callable[..., Any]) -> None:
    counted = counted_by("traffic.py", python_launcher, ranks)
    for zero, of in MOVED.items():
        found = counted[str(zero)]
        step = of.step + of.share / max(ranks, 1) + (of.mean if ranks else 0)
        assert found["step"] == pytest.approx(step, abs=0.1), zero
        assert found["row"] == pytest.approx(of.row + of.row_share / max(ranks, 1), abs=0.1), zero
