"""Files of bench/results: a JSON object a line, `bench` names the script that wrote it (without: bench.ops)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

Row = dict[str, Any]
FOLDER = Path(__file__).with_name("results")
NEWEST = dict[str, tuple[Path, list[Row]]]


def read(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path: Path, rows: list[Row]) -> None:
    """All at once: who reads meanwhile, or ends this process, finds whole lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.new")
    new.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    os.replace(new, path)


def of_bench(path: Path, bench: str) -> list[Row]:
    """The rows of one script that say when they were made."""
    return [row for row in read(path) if row.get("bench", "ops") == bench and row.get("date")]


def newest(folder: Path = FOLDER, bench: str = "ops") -> NEWEST:
    """Kind of device -> (file, rows of `bench`) of its latest run."""
    found: NEWEST = {}
    for path in sorted(folder.glob("*.jsonl")):
        rows = of_bench(path, bench)
        if rows and (rows[0]["device"] not in found or rows[0]["date"] > found[rows[0]["device"]][1][0]["date"]):
            found[rows[0]["device"]] = path, rows
    return found


def by_case(rows: list[Row]) -> dict[str, list[Row]]:
    """Case -> its rows, in the order of the run."""
    cases: dict[str, list[Row]] = {}
    for row in rows:
        cases.setdefault(row["case"], []).append(row)
    return cases


def origin(path: Path, rows: list[Row]) -> str:
    """Where the rows come from, as a sentence: machine, versions, every commit and date among them, the file."""
    first = rows[0]
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items())
    commits = " and ".join(dict.fromkeys(f"{row['commit']} ({row['date'][:10]})" for row in rows))
    loads = sorted({round(row["load_average"], 1) for row in rows})
    load = f"{loads[0]}" if len(loads) == 1 else f"{loads[0]} to {loads[-1]}"
    threads = f", {first['threads']} thread{'s' * (first['threads'] != 1)}" if "threads" in first else ""
    machine = f"{first['hardware']}, {first['isa']}{threads}"
    where = f"[{path.name}](../bench/results/{path.name})"
    return f"{machine}; {versions}; commit {commits}, load average {load} at the start; {where}."
