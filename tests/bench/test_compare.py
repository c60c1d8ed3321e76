"""Two commits side by side: the other one's code is what its process runs, and what is slower is told."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from bench.compare import Figure, Side, measure, other_tree

ROOT = Path(__file__).resolve().parents[2]
SLEEP = """

import time as _time

_fast = box_iou


def box_iou(*args, **more):
    _time.sleep(0.05)
    return _fast(*args, **more)
"""
inside_git = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True).returncode == 0
needs_git = pytest.mark.skipif(not inside_git, reason="compares commits: needs the repository")


@needs_git
def test_a_commit_that_is_slower_is_told() -> None:
    """Here the other one: its box_iou sleeps for 50 ms."""
    with other_tree("HEAD") as tree:
        door = tree / "kernels" / "univg_kernels" / "box_iou" / "__init__.py"
        door.write_text(door.read_text() + SLEEP)
        sides = Side(ROOT, "cpu", "tiny"), Side(tree, "cpu", "tiny")
        try:
            answers = [side.ask(case="box_iou_fp32_200") for side in sides]
            assert answers == [{"problem": "", "variants": ["univg cpp"]}] * 2
            faster = measure("box_iou", "univg cpp", sides, 0.1)
            slower = measure("box_iou", "univg cpp", (sides[1], sides[0]), 0.1)
            assert sides[0].ask(case="no such case")["problem"].startswith("failed: KeyError")
        finally:
            for side in sides:
                side.end()
    assert faster.base_s > 0.05 > faster.now_s and faster.times < 1 < 1.15 < slower.times
    assert "SLOWER than 1.15" in slower.text(1.15) and "SLOWER" not in faster.text(1.15)
    assert (
        str(tree)
        not in subprocess.run(["git", "-C", str(ROOT), "worktree", "list"], capture_output=True).stdout.decode()
    )


@needs_git
def test_a_base_that_is_no_commit_is_an_error() -> None:
    with pytest.raises(SystemExit, match="--base nonsense is no commit"), other_tree("nonsense"):
        pass


def test_the_bound_is_of_the_ratio() -> None:
    assert "SLOWER" in Figure("a", 5, 1.2, 1.0, 1.16).text(1.15) and "SLOWER" not in Figure(
        "a", 5, 9.0, 1.0, 1.15
    ).text(1.15)
