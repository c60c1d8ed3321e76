"""docs/benchmarks.md and its pictures, from the newest results of each device.

python -m bench.report [--results FOLDER] [--docs FOLDER]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .blocks import fill_pages
from .loads import ROOT
from .loads_text import loads_section
from .overhead_text import overhead_section
from .plot import draw
from .results import FOLDER, by_case, newest, origin
from .roofline import draw_roofline
from .sections import runs_section, sections
from .table import fast_row, ratio, seconds
from .targets import targets

Row = dict[str, Any]
HEAD = """# Benchmarks

Made by `python -m bench.report` from the newest files in [bench/results](../bench/results); not written by hand.

```bash
make bench                              # everything on this page on your CPU, in ten minutes: checks first, then times
make gpu                                # the same on an NVIDIA GPU, in eight; what is cut short keeps its finished rows
make bench ARGS="--base HEAD~1"         # this checkout against another commit, in turns; fails where it is slower
python -m bench.scale --gpus 8 1024     # past one machine: predicted from rates that you give; assumptions printed
python -m bench.report                  # this page and its pictures from bench/results
```

One table, one command: [suite.py](../bench/suite.py) lists them with their shares of the time, and each stands at its
table below. Where `make` cannot fetch packages: `PYTHONPATH=kernels python3 -m bench.suite --device cuda` with those
that are there (torch, triton, transformers); what is missing is named and left out.

Every variant is proved before it is timed, at the same vocabulary: loss and gradients against fp64, within twice the
error of eager torch in the same dtype + 1e-6 (fp32) or 1e-4 (bf16); packages of others within ten times that. What
fails is listed as wrong and has no time. Variants of one case take turns in one process, so that ratios compare like
with like: a ratio is the median over their rounds; brackets hold the 20th and the 80th percentile. "Extra" is the
peak of memory beyond the inputs and the gradients of hidden states and head that a variant must hand over; a new
tensor for the gradient of the logits is extra. "Of copy": the bytes that the op must read and write at least, over
the time, as a share of what a copy or a sweep in place reaches on this machine, the faster; "of GEMM": the operations
of the products that it needs, as a share of a large square product. `univg reference` is the specification in plain
torch.
"""
ROOFLINE = """![Roofline of the loss heads](roofline_{kind}.png)

Both roofs are a run's own ceilings; the share beside a point of ours is of the roof above it. Bytes are those that a
head cannot avoid, FLOPs those of its products, or 8 a logit where there are none
([roofline.py](../bench/roofline.py)).
"""
NONE = """## {kind}

Nothing is claimed: no run of `make {command}` is among the results.
"""
COMMANDS = {"cpu": "bench", "cuda": "gpu"}


def document(found: dict[str, tuple[Path, list[Row]]], *more: str) -> str:
    """`more`: the sections behind those of the ops."""
    devices = [
        _device(kind, *found[kind]) if _timed(found, kind) else NONE.format(kind=kind.upper(), command=command)
        for kind, command in COMMANDS.items()
    ]
    return "\n".join([HEAD, *devices, *more])


def _timed(found: dict[str, tuple[Path, list[Row]]], kind: str) -> bool:
    """A run that was cut before its first case was timed has nothing to show."""
    return any(row["status"] == "timed" for row in found.get(kind, (None, []))[1])


def _device(kind: str, path: Path, rows: list[Row]) -> str:
    timed = [r for r in rows if r["status"] == "timed"]
    gemm = {r["dtype"]: r["ceiling_gemm_flops_per_s"] for r in timed}
    lines = [
        f"## {kind.upper()}: {rows[0]['hardware']}",
        "",
        f"`python -m bench.ops`: {origin(path, rows)}",
        f"Measured ceilings: copy {timed[0]['ceiling_copy_bytes_per_s'] / 1e9:.1f} GB/s (read + written), "
        + ", ".join(f"{d} products {g / 1e12:.3g} TFLOP/s" for d, g in sorted(gemm.items(), reverse=True))
        + ".",
        "",
        "| target | bound | reached | |",
        "|---|---|---|---|",
    ]
    for t in targets(rows):
        reached = "not measured" if t.reached is None else f"{t.reached:.3g}"
        lines.append(f"| {t.what} | {t.bound} | {reached} | {'met' if t.met else 'missed' if t.reached else ''} |")
    lines += ["", f"![Times of each case](bench_{kind}.png)", "", ROOFLINE.format(kind=kind)]
    for case, of_case in by_case(rows).items():
        lines += _table(case, of_case)
    return "\n".join(lines)


def _table(case: str, rows: list[Row]) -> list[str]:
    timed = [r for r in rows if r["status"] == "timed"]
    others = [r for r in rows if r["status"] != "timed"]
    lines = [f"### {case}", ""]
    if timed:
        lines += [
            "| variant | time | × ours | extra | of copy | of GEMM | error / allowed |",
            "|---|---|---|---|---|---|---|",
        ]
        lines += [_cells(r, fast_row(rows, case, r["mode"])) for r in timed]
        if timed[0]["floor_bytes"]:
            lines += ["", f"To read and write at least: {timed[0]['floor_bytes'] / 2**20:.1f} MiB."]
        elif any(r["flops"] for r in timed):
            lines += ["", f"To compute at least: {max(r['flops'] for r in timed) / 1e12:.3g} TFLOP in its products."]
        lines.append("")
    if others:
        lines += ["; ".join(f"{r['variant'] or 'all'}: {r['status']}" for r in others) + ".", ""]
    return lines


def _cells(row: Row, own: Row | None) -> str:
    mode = f" ({row['mode']})" if row["mode"] not in ("", "fresh") else ""
    extra = f"{max(row['extra_bytes'], 0) / 2**20:.0f} MiB"
    if row["avoided_bytes"]:
        extra += f" ({max(row['extra_bytes'], 0) / row['avoided_bytes']:.0%} of the logits)"
    shares = [f"{row[k]:.0%}" if k in row else "" for k in ("copy_share", "gemm_share")]
    times = f"{ratio(row, own):.2f}" if own else ""
    spread = f"[{seconds(row['wall_p20_s'])}, {seconds(row['wall_p80_s'])}]"
    error = f"{row['error_of_allowed']:.2f}" if row["error_of_allowed"] else ""
    cells = (row["variant"] + mode, f"{seconds(row['wall_p50_s'])} {spread}", times, extra, *shares, error)
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=FOLDER)
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    options = parser.parse_args()
    found = newest(options.results)
    options.docs.mkdir(exist_ok=True)
    for kind, (_, rows) in found.items():
        if not _timed(found, kind):
            continue
        draw(rows, options.docs / f"bench_{kind}.png")
        draw_roofline(rows, options.docs / f"roofline_{kind}.png")
    (options.docs / "benchmarks.md").write_text(page(options.results), encoding="utf-8")
    if options.docs == ROOT / "docs":
        fill_pages(options.results)


def page(folder: Path = FOLDER) -> str:
    """docs/benchmarks.md."""
    more = [sections(folder), overhead_section(folder), loads_section(), runs_section(folder)]
    return document(newest(folder), *more)


if __name__ == "__main__":
    main()
