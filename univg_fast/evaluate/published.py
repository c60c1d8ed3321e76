"""The figures that the field has published (published.json, in percent), and those to be shown beside a result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("published.json")


def published(benchmark: str, protocol: str) -> list[dict[str, Any]]:
    """Rows {model, source, average, values: task or set -> figure} of a benchmark and protocol; sources in words, and
    what the table says of all its rows under `table_note`."""
    content = json.loads(FILE.read_text(encoding="utf-8"))
    return [
        row | {"source": content["sources"][row["source"]]} | ({"table_note": table["note"]} if "note" in table else {})
        for table in content["tables"]
        for row in table["rows"]
        if benchmark in table["benchmarks"] and protocol == table["protocol"]
    ]


def published_figure(row: dict[str, Any], benchmark: str) -> float:
    """What a row says of a benchmark, in percent: of that set, where the row's average is over several sets."""
    return row.get("values", {}).get(benchmark, row["average"])
