"""Rows as lines on the terminal."""

from __future__ import annotations

import statistics
from typing import Any

from .ceilings import Ceilings

Row = dict[str, Any]


def heading(origin: Row, ceilings: Ceilings) -> str:
    gemm = ", ".join(f"{rate / 1e12:.3g} TFLOP/s {name}" for name, rate in ceilings.gemm.items())
    versions = ", ".join(f"{k} {v}" for k, v in origin["versions"].items())
    machine = f"{origin['hardware']} ({origin['isa']}), load average {origin['load_average']:.1f}"
    return (
        f"{machine}, commit {origin['commit']}\n"
        f"{versions}\n"
        f"ceilings measured now: copy {ceilings.copy / 1e9:.1f} GB/s (read + written), products {gemm}"
    )


def is_fast(row: Row) -> bool:
    """A row of a compiled face of this project on the problem that the case is named after."""
    own = bool(row.get("own")) and row["status"] == "timed"
    return own and row["variant"] != "univg reference" and ", " not in row["variant"]


def fast_row(rows: list[Row], case: str, mode: str) -> Row | None:
    return next((r for r in rows if is_fast(r) and (r["case"], r["mode"]) == (case, mode)), None)


def ratio(row: Row, other: Row) -> float:
    """Time of `row` over that of `other`: the median over the rounds in which both took their turn, so that what the
    machine did meanwhile weighs on both sides."""
    a, b = (r.get("samples_s", ()) for r in (row, other))
    if len(a) == len(b) > 0:
        return statistics.median(x / y for x, y in zip(a, b, strict=True))
    return row["wall_p50_s"] / other["wall_p50_s"]


def seconds(value: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if value >= size:
            return f"{value / size:.3f} {unit}"
    return f"{value / 1e-6:.1f} µs"


def block(rows: list[Row]) -> str:
    """The rows of one case."""
    return "\n".join([f"\n{rows[0]['case']}", *(f"  {_line(row, rows)}" for row in rows)])


def _line(row: Row, rows: list[Row]) -> str:
    if row["status"] != "timed":
        return f"{row['variant']:33s}{row['status']}"
    own = fast_row(rows, row["case"], row["mode"])
    times = f"x {ratio(row, own):6.2f}" if own else ""
    spread = f"[{seconds(row['wall_p20_s'])}, {seconds(row['wall_p80_s'])}] of {row['rounds']}"
    parts = [f"cpu {seconds(row['cpu_p50_s']):>10s}", f"extra {row['extra_bytes'] / 2**20:5.0f} MiB"]
    if row["avoided_bytes"]:
        parts.append(f"{row['extra_bytes'] / row['avoided_bytes']:4.0%} of the logits")
    parts += [f"{row[k]:4.0%} of {what}" for k, what in (("copy_share", "copy"), ("gemm_share", "GEMM")) if k in row]
    return f"{row['variant']:26s} {row['mode']:5s} {seconds(row['wall_p50_s']):>10s} {times} {spread:30s} " + "  ".join(
        parts
    )
