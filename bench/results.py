"""Reading what `bench.ops --out` wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Row = dict[str, Any]
FOLDER = Path(__file__).with_name("results")


def read(path: Path) -> list[Row]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if "status" in row]


def newest(folder: Path = FOLDER) -> dict[str, tuple[Path, list[Row]]]:
    """Kind of device -> (file, rows) of its latest run."""
    found: dict[str, tuple[Path, list[Row]]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        rows = read(path)
        if rows and (rows[0]["device"] not in found or rows[0]["date"] > found[rows[0]["device"]][1][0]["date"]):
            found[rows[0]["device"]] = path, rows
    return found


def by_case(rows: list[Row]) -> dict[str, list[Row]]:
    """Case -> its rows, in the order of the run."""
    cases: dict[str, list[Row]] = {}
    for row in rows:
        cases.setdefault(row["case"], []).append(row)
    return cases
