"""The roofline of the loss heads: FLOP/s against FLOP a byte, under the ceilings that the same run measured.

A head's bytes are those that it cannot avoid (logits read and written once; hidden states, weight and both gradients
once), its FLOPs those of its products, or LOGIT for each logit where there are none: largest, difference, exponential,
sum, and for the gradient difference, exponential, product, difference. All variants of a case so stand above one
another, and what lies between a point and the roof is what is left to win.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402

from .plot import BARE, OTHERS, OURS  # noqa: E402
from .table import is_fast  # noqa: E402

Row = dict[str, Any]
LOGIT = 8
WIDTHS = {"fp32": 4, "bf16": 2}
HEADS = ("grpo_loss", "selective_logprob", "linear_grpo_loss", "linear_logprob", "linear_ce")
LABELS = ("", "target", "peers")  # no other loss types: they have the same place
STYLES = {"fp32": ("o", "-"), "bf16": ("s", "--")}


def place(row: Row) -> tuple[float, float]:
    """(FLOP a byte, FLOP/s) of a timed row."""
    if row["flops"]:
        flops = row["flops"]
        moved = 2.0 * (row["rows"] + row["vocab"]) * row["width"] * WIDTHS[row["dtype"]]
    else:
        flops, moved = LOGIT * row["rows"] * row["vocab"], row["floor_bytes"]
    return flops / moved, flops / row["wall_p50_s"]


def shown(rows: list[Row]) -> list[Row]:
    """Timed rows of the heads in full: no rows left out of the product, nothing frozen, the first mode."""
    timed = [r for r in rows if r["status"] == "timed" and r["op"] in HEADS and r["label"] in LABELS]
    whole = [r for r in timed if ", " not in r["variant"] and r["variant"] not in ("two products", "univg reference")]
    first = whole[0]["mode"] if whole else ""
    return [r for r in whole if r["mode"] == first]


def draw_roofline(rows: list[Row], path: Path) -> None:
    found = shown(rows)
    if not found:
        return
    figure, axis = plt.subplots(figsize=(8.6, 4.9), layout="constrained")
    _roofs(axis, found)
    for row in found:
        x, y = place(row)
        colour = OURS if row["own"] else BARE if "products" in row["variant"] else OTHERS
        edge = "#333" if row["own"] else "#777"
        axis.plot(x, y, STYLES[row["dtype"]][0], color=colour, markeredgecolor=edge, markersize=8 if row["own"] else 6,
                  markeredgewidth=0.7, zorder=4 if row["own"] else 3)  # fmt: skip
    _names(axis, found)
    axis.set_xlabel("FLOP a byte that must be moved", fontsize=9)
    axis.set_ylabel("FLOP/s", fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(True, which="major", color="#eee", linewidth=0.8)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    axis.set_title(f"Loss heads, forward + backward, {rows[0]['hardware']}: blue ours, yellow bare products",
                   fontsize=9.5, loc="left")  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100, metadata={"Software": None})
    plt.close(figure)


def _roofs(axis: Axes, rows: list[Row]) -> None:
    """One for each dtype; the left part is memory's."""
    xs = [place(r)[0] for r in rows]
    left, right = min(xs) / 4, max(xs) * 6
    for dtype, (_, dashes) in STYLES.items():
        of_dtype = [r for r in rows if r["dtype"] == dtype]
        if not of_dtype:
            continue
        copy, peak = of_dtype[0]["ceiling_copy_bytes_per_s"], of_dtype[0]["ceiling_gemm_flops_per_s"]
        axis.plot([left, peak / copy, right], [left * copy, peak, peak], dashes, color="#444", linewidth=1.2, zorder=2)
        axis.annotate(f"{dtype} products {peak / 1e12:.3g} TFLOP/s", (right, peak), xytext=(0, 4),
                      textcoords="offset points", ha="right", fontsize=7.5, color="#444")  # fmt: skip
    copy = rows[0]["ceiling_copy_bytes_per_s"]
    axis.annotate(f"memory {copy / 1e9:.3g} GB/s", (left, left * copy), xytext=(6, 2), textcoords="offset points",
                  ha="left", va="bottom", fontsize=7.5, color="#444", rotation=32, rotation_mode="anchor")  # fmt: skip
    axis.set_xscale("log")
    axis.set_yscale("log")


def _names(axis: Axes, rows: list[Row]) -> None:
    """Each case once, under its lowest point; ours with its share of the roof."""
    lowest: dict[str, Row] = {}
    for row in rows:
        if row["case"] not in lowest or place(row)[1] < place(lowest[row["case"]])[1]:
            lowest[row["case"]] = row
    for case, row in lowest.items():
        (own,) = [r for r in rows if r["case"] == case and is_fast(r)][:1] or [row]
        x, y = place(own)
        roof = min(x * own["ceiling_copy_bytes_per_s"], own["ceiling_gemm_flops_per_s"])
        axis.annotate(f"{y / roof:.0%}", (x, y), xytext=(9, -3), textcoords="offset points", fontsize=7.5, color=OURS)
        name = (
            f"{row['op']}\n{row['dtype']} {row['rows']}×"
            + (f"{row['width']}×" if row["width"] else "")
            + str(row["vocab"])
        )
        axis.annotate(name, place(row), xytext=(0, -8), textcoords="offset points", ha="center", va="top", fontsize=6.5,
                      color="#555")  # fmt: skip
