"""An evaluation that one rank is asked to stop ends on all of them, and leaves no result."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def test_all_ranks_stop_where_one_is_asked_and_can_go_on_together(launch: Any, small: Path, tmp_path: Path) -> None:
    done = launch(Path(__file__).parent / "stop_worker.py", small, tmp_path / "eval" / "x", ranks=2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [done.stdout.count(f"rank {rank} stopped") for rank in range(2)] == [1, 1], done.stdout
    assert {path.name for path in (tmp_path / "eval").iterdir()} == {"x.json", "x.jsonl"}
