"""The picture: a panel for each case, a bar for each variant, ours in colour."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402

from .results import by_case  # noqa: E402
from .table import fast_row, is_fast, ratio, seconds  # noqa: E402

Row = dict[str, Any]
OURS, OTHERS, BARE = "#1b6ca8", "#c9ced6", "#e9c46a"
# The table has the others: loss types on the same road, second shapes and dtypes, and ops of microseconds.
SHOWN = {("grpo_loss", ""), ("grpo_loss", "sequence"), ("linear_grpo_loss", "target"), ("linear_grpo_loss", "peers"),
         ("selective_logprob", ""), ("linear_logprob", ""), ("linear_ce", "")}  # fmt: skip
COLUMNS = 2


def panels(rows: list[Row]) -> dict[str, list[Row]]:
    """The timed rows, slowest first, of the first case of each kind and, for `grpo_loss`, dtype; without the
    specification, whose bar would make dwarfs of the others."""
    found, seen = {}, set()
    for case, of_case in by_case(rows).items():
        timed = [r for r in of_case if r["status"] == "timed" and r["variant"] != "univg reference"]
        timed = [r for r in timed if r["mode"] == timed[0]["mode"]]
        kind = (of_case[0]["op"], of_case[0]["label"])
        key = (*kind, of_case[0]["dtype"] if kind[0] == "grpo_loss" else "")
        if kind in SHOWN and key not in seen and any(is_fast(r) for r in timed):
            seen.add(key)
            found[case] = sorted(timed, key=lambda r: -r["wall_p50_s"])
    return found


def draw(rows: list[Row], path: Path) -> None:
    cases = panels(rows)
    lines = -(-len(cases) // COLUMNS)
    tallest = max(len(r) for r in cases.values())
    size = (11, 0.55 + lines * (0.75 + 0.24 * tallest))
    figure, axes = plt.subplots(lines, COLUMNS, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat[len(cases) :]:
        axis.axis("off")
    for axis, (case, of_case) in zip(axes.flat, cases.items(), strict=False):
        _panel(axis, case, of_case)
    figure.suptitle(f"{rows[0]['hardware']}: forward + backward, median; × of ours; memory beyond inputs and gradients",
                    fontsize=10, x=0.01, ha="left")  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100, metadata={"Software": None})
    plt.close(figure)


def _panel(axis: Axes, case: str, rows: list[Row]) -> None:
    own = fast_row(rows, case, rows[0]["mode"])
    assert own is not None  # panels()
    times = [r["wall_p50_s"] for r in rows]
    colours = [OURS if r["own"] else BARE if "products" in r["variant"] else OTHERS for r in rows]
    places = range(len(rows))
    spread = [[t - r["wall_p20_s"] for t, r in zip(times, rows, strict=True)],
              [r["wall_p80_s"] - t for t, r in zip(times, rows, strict=True)]]  # fmt: skip
    axis.barh(places, times, color=colours, height=0.72, xerr=spread, error_kw={"lw": 0.8, "ecolor": "#555"})
    for place, row in zip(places, rows, strict=True):
        label = f"{seconds(row['wall_p50_s'])}  ×{ratio(row, own):.2f}"
        label += f"  {max(row['extra_bytes'], 0) / 2**20:.0f} MiB"
        axis.text(row["wall_p80_s"] + max(times) * 0.03, place, label, va="center", fontsize=7.5)
    axis.set_yticks(places, [r["variant"] for r in rows], fontsize=8)
    axis.set_xlim(0, max(r["wall_p80_s"] for r in rows) * 1.45)
    axis.set_title(case, fontsize=9, loc="left", fontweight="bold")
    axis.xaxis.set_visible(False)
    axis.tick_params(axis="y", length=0)
    for side in ("top", "right", "bottom"):
        axis.spines[side].set_visible(False)
