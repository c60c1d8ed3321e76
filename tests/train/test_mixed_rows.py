"""A rank without images in its row goes on with the others: nobody hangs, and the step is that of one rank."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


def test_ranks_with_and_without_images(launch: Any, tmp_path: Path) -> None:
    reports = []
    for world in (1, 2):
        path = tmp_path / f"{world}.json"
        done = launch("mixed_rows_worker.py", path, world=world)
        assert done.returncode == 0, done.stderr[-4000:]
        reports.append(json.loads(path.read_text()))
    one, two = reports
    for name, log in two.items():
        for key, values in log.items():
            assert values == pytest.approx(one[f"0 {name.split()[1]}"][key], rel=1e-4), name
