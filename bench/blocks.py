"""Tables of measured figures in other pages: what stands between `<!-- bench: NAME -->` and `<!-- /bench -->`."""

from __future__ import annotations

import re
from pathlib import Path

from .first_screen import first_screen
from .loads import ROOT
from .results import FOLDER, newest

MARK = re.compile(r"(<!-- bench: (\w+) -->\n).*?(<!-- /bench -->)", re.DOTALL)
PAGES = ("README.md", "docs/performance.md")


def packing(folder: Path = FOLDER) -> str:
    """performance.md's table: each figure under both assumptions on image sizes."""
    _, rows = newest(folder, "packing")["cpu"]
    lines = ["| ranks | window | fill | passes a step | busiest |", "| --- | --- | --- | --- | --- |"]
    drawn = [row for row in rows if "fill" in row]
    for ranks, window in dict.fromkeys((row["ranks"], row["window"]) for row in drawn):
        both = [row for row in drawn if (row["ranks"], row["window"]) == (ranks, window)]

        def cell(key: str, times: float, both: list[dict[str, float]] = both) -> str:
            return ", ".join(f"{row[key] * times:.1f}" for row in both)

        busiest = f"{cell('imbalance', 100)} %" if ranks > 1 else "–"
        lines.append(f"| {ranks} | {window} | {cell('fill', 100)} % | {cell('passes', 1)} | {busiest} |")
    return "\n".join([*lines, ""])


BLOCKS = {"packing": packing, "first_screen": first_screen}


def filled(text: str, folder: Path = FOLDER) -> str:
    """`text` with every block as the results have it."""
    return MARK.sub(lambda found: found[1] + BLOCKS[found[2]](folder) + found[3], text)


def fill_pages(folder: Path = FOLDER) -> None:
    for name in PAGES:
        page = ROOT / name
        page.write_text(filled(page.read_text(encoding="utf-8"), folder), encoding="utf-8")
