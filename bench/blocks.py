"""Tables of measured figures in other pages: what stands between `<!-- bench: NAME -->` and `<!-- /bench -->`."""

from __future__ import annotations

import re
from pathlib import Path

from .first_screen import first_screen
from .loads import ROOT
from .results import FOLDER, Row, newest, origin
from .table import seconds

MARK = re.compile(r"(<!-- bench: (\w+) -->\n).*?(<!-- /bench -->)", re.DOTALL)
PAGES = ("README.md", "docs/performance.md", "docs/dropins.md")


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


def dropins(folder: Path = FOLDER) -> str:
    """dropins.md's table: a host's step as it comes and with the drop-in."""
    found = newest(folder, "dropins")
    if not found:
        return "Nothing is claimed: no run of `python -m bench.dropins` is among the results.\n"
    ((path, rows),) = found.values()
    lines = ["| host | its time | with the drop-in | × | its peak | with the drop-in | × |", "|---" * 7 + "|"]
    for host in dict.fromkeys(row["host"] for row in rows):
        of_host = {row["variant"]: row for row in rows if row["host"] == host}
        timed = all(row["status"] == "timed" for row in of_host.values())
        lines.append(_dropin(host, of_host["host"], of_host["drop-in"]) if timed else _not_timed(host, of_host))
    return "\n".join([origin(path, rows), "", *lines, ""])


def _dropin(host: str, theirs: Row, ours: Row) -> str:
    times = [f"{ours[name]:.2f}" if ours[name] is not None else "–" for name in ("times_wall", "times_memory")]
    peaks = [f"{max(row['peak_bytes'], 0) / 2**20:.0f} MiB" for row in (theirs, ours)]
    cells = (host, *(seconds(row["wall_p50_s"]) for row in (theirs, ours)), times[0], *peaks, times[1])
    return f"| {' | '.join(cells)} |"


def _not_timed(host: str, rows: dict[str, Row]) -> str:
    status = next(row["status"] for row in rows.values() if row["status"] != "timed").replace("|", "/")
    return f"| {host} | {status} | | | | | |"


BLOCKS = {"packing": packing, "first_screen": first_screen, "dropins": dropins}


def filled(text: str, folder: Path = FOLDER) -> str:
    """`text` with every block as the results have it."""
    return MARK.sub(lambda found: found[1] + BLOCKS[found[2]](folder) + found[3], text)


def fill_pages(folder: Path = FOLDER) -> None:
    for name in PAGES:
        page = ROOT / name
        page.write_text(filled(page.read_text(encoding="utf-8"), folder), encoding="utf-8")
