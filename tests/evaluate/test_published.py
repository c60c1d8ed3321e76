"""The published tables: their averages are those of their rows, but for the one that is known to be misprinted."""

from __future__ import annotations

import json

from univg_fast.evaluate import __main__
from univg_fast.evaluate.benchmarks import BENCHMARKS, MIG_COUNTS, MIG_TASKS
from univg_fast.evaluate.parsers import PARSERS
from univg_fast.evaluate.published import FILE, published

TABLES = json.loads(FILE.read_text(encoding="utf-8"))["tables"]
ROUNDING = 0.01 + 1e-9  # half a unit of the last digit in the rows, and rounding or cutting in the average


def test_the_mean_of_a_row_is_its_published_average() -> None:
    checked, misprints = 0, []
    for table in TABLES:
        for row in table["rows"]:
            if "values" not in row:
                continue
            checked += 1
            mean = sum(row["values"].values()) / len(row["values"])
            if abs(mean - row["average"]) > ROUNDING:
                misprints.append((row["model"], row["average"], round(mean, 2)))
            assert ("misprint" in row) == (abs(mean - row["average"]) > ROUNDING), row["model"]
    assert checked >= 19 and misprints == [("UniVG-R1", 72.64, 72.62)]


def misfits(row: dict, counts: dict[str, int]) -> list[str]:
    """The tasks whose figure is no k of their entries."""
    out = []
    for key, name in MIG_TASKS.items():
        n, figure = counts[key], row["values"][name]
        k = int(figure * n / 100)
        out += [name] if min(abs(100 * i / n - figure) for i in (k, k + 1)) > 0.0101 else []
    return out


def test_figures_are_shares_of_the_entries_that_we_count() -> None:
    assert sum(MIG_COUNTS["original"].values()) == 4295 and sum(MIG_COUNTS["revised"].values()) == 4276
    for protocol, other in (("original", "revised"), ("revised", "original")):
        for row in published("mig_bench", protocol):
            if "values" not in row:
                continue
            counted = other if "original set" in row.get("note", "") else protocol
            own, others = (misfits(row, MIG_COUNTS[name]) for name in (counted, *{"original", "revised"} - {counted}))
            assert len(own) <= 1 and "GG" not in own and "GG" in others, row["model"]


def test_the_command_s_help_names_what_there_is() -> None:
    assert list(BENCHMARKS) == __main__.BENCHMARKS.split(", ") and list(PARSERS) == list(__main__.PARSERS)


def test_tables_belong_to_benchmarks_and_name_their_sources() -> None:
    for table in TABLES:
        for name in table["benchmarks"]:
            assert table["protocol"] in [protocol.name for protocol in BENCHMARKS[name].protocols]
            rows = published(name, table["protocol"])
            assert rows and all("arXiv" in row["source"] for row in rows)
        columns = set(MIG_TASKS.values()) if table["benchmarks"] == ["mig_bench"] else set(table["benchmarks"])
        assert all(set(row["values"]) == columns for row in table["rows"] if "values" in row)
