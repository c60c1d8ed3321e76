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
GAP = 1.45  # of two labels, as a ratio of their heights
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


def share(row: Row) -> float:
    """Of the roof above its place, by the ceilings of its own run."""
    x, y = place(row)
    return y / min(x * row["ceiling_copy_bytes_per_s"], row["ceiling_gemm_flops_per_s"])


def draw_roofline(rows: list[Row], path: Path) -> None:
    """Rows of several runs hang below one roof, the first one's, each by its own share."""
    found = shown(rows)
    if not found:
        return
    figure, axis = plt.subplots(figsize=(9, 5), layout="constrained")
    roofs = {dtype: next(r for r in found if r["dtype"] == dtype) for dtype in dict.fromkeys(r["dtype"] for r in found)}
    xs = [place(r)[0] for r in found]
    _roofs(axis, roofs, min(xs) / 40, max(xs) * 40)
    names: dict[str, list[tuple[float, float, str]]] = {dtype: [] for dtype in STYLES}
    for row in found:
        x, height = place(row)[0], share(row) * _roof(roofs[row["dtype"]], place(row)[0])
        colour = OURS if row["own"] else BARE if "products" in row["variant"] else OTHERS
        size, order = (8, 4) if row["own"] else (6, 3)
        axis.plot(x, height, STYLES[row["dtype"]][0], color=colour, markeredgecolor="#555", markersize=size,
                  markeredgewidth=0.7, zorder=order)  # fmt: skip
        if is_fast(row):
            text = f"{row['op']} {row['dtype']}, {share(row):.0%} of the roof"
            names[row["dtype"]].append((x, height, text))
    for dtype, labels in names.items():
        _labels(axis, labels, left=dtype == "fp32")
    axis.set_xlabel("FLOP a byte that must be moved", fontsize=9)
    axis.set_ylabel("FLOP/s", fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(True, which="major", color="#eee", linewidth=0.8)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    title = f"{rows[0]['hardware']}: loss heads, forward + backward; blue ours, grey others, yellow bare products"
    axis.set_title(title, fontsize=9.5, loc="left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100, metadata={"Software": None})
    plt.close(figure)


def _roof(row: Row, x: float) -> float:
    roof: float = min(x * row["ceiling_copy_bytes_per_s"], row["ceiling_gemm_flops_per_s"])
    return roof


def _roofs(axis: Axes, roofs: dict[str, Row], left: float, right: float) -> None:
    """One for each dtype; the left part, which is memory's, they share."""
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlim(left, right)
    for dtype, row in roofs.items():
        copy, peak = row["ceiling_copy_bytes_per_s"], row["ceiling_gemm_flops_per_s"]
        start = peak / copy / 300
        axis.plot(
            [start, peak / copy, right], [start * copy, peak, peak], STYLES[dtype][1], color="#444", linewidth=1.2
        )
        axis.annotate(f"{dtype} products: {peak / 1e12:.3g} TFLOP/s", (right, peak), xytext=(-4, 4),
                      textcoords="offset points", ha="right", fontsize=8, color="#444")  # fmt: skip
    at = min(row["ceiling_gemm_flops_per_s"] / row["ceiling_copy_bytes_per_s"] for row in roofs.values()) / 3
    axis.annotate(f"memory: {copy / 1e9:.3g} GB/s", (at, at * copy), xytext=(-8, 4), textcoords="offset points",
                  ha="right", fontsize=8, color="#444")  # fmt: skip


def _labels(axis: Axes, labels: list[tuple[float, float, str]], left: bool) -> None:
    """Beside their points, pushed apart where they would lie on one another."""
    last = 0.0
    for x, y, text in sorted(labels, key=lambda label: label[1]):
        last = max(y, last * GAP)
        place_of = x / 1.25 if left else x * 1.25
        axis.text(place_of, last, text, ha="right" if left else "left", va="center", fontsize=7.5, color=OURS,
                  bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0}, zorder=3)  # fmt: skip
