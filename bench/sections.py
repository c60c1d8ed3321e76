"""The parts of docs/benchmarks.md about whole steps, rollout, packing and predictions: tables of what files say."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from .results import FOLDER, newest, of_bench, origin
from .table import seconds
from .targets import targets

Row = dict[str, Any]
Cells = tuple[str, ...]  # of a line of a table
MIB = 2**20

STEP = """## A step's update, and each lever off in turn

`python -m bench.step`: reference log-probs, then the policy's forward and backward pass, of {prompts} prompts with
{images} images and {group} responses of {tokens} tokens each ({prompt_tokens:.0f} tokens a prompt; hidden {hidden},
{layers} layers, vocabulary {vocab:,}). Proved first: loss and gradients of every variant are those of the separate
sequences. "× separate": times faster than they are; "off costs": time over that with all levers on.

{origin}

| variant | time | × separate | × in CPU time | off costs | error |
|---|---|---|---|---|---|
"""
ROLLOUT = """## Rollout against `generate`

`python -m bench.rollout`: {group} completions of {tokens} tokens of {prompts} prompts with {images} images (hidden
{hidden}, {layers} layers, vocabulary {vocab:,}). Proved first: greedy tokens equal, log-probs within {logp_gap:.0e}
of the training pass. Ratios are against the faster `generate`. On a busy machine CPU time says more than the clock.

{origin}

| variant | time | CPU time | × generate | × in CPU time |
|---|---|---|---|---|
"""
TRL = """## A whole step against TRL

`python -m bench.trl_step`: from image files to the optimizer, {prompts} prompts with {images} images, {group}
completions of {tokens} tokens (hidden {hidden}, {layers} layers, vocabulary {vocab:,}), fp32. Proved first, on TRL's
own completions: prompts, patches, reward, KL, loss and gradient norm agree to 1e-4. "× TRL" is against its faster
variant.

{origin}

| variant | prompts/s | time | × TRL | × in CPU time | peak | gen | ref | update |
|---|---|---|---|---|---|---|---|---|
"""
PACKING = """## Packing

`python -m bench.packing`: rows of {budget:,} tokens, steps of {batch} samples with MIG-Bench's numbers of images,
under two assumptions on image sizes ([performance.md](performance.md#which-samples-share-a-row)). Passes are those of
the rank with most rows; "busiest" is what its rank has to do beyond the mean one; "saved" are tokens below padded
batches. Nothing of it depends on the machine but the plan's time.

{origin}

| image sizes | ranks | window | fill | passes a step | samples a step | busiest | saved |
|---|---|---|---|---|---|---|---|
"""
SCALE = """## Predictions, and how good they are here

`python -m bench.scale` predicts a step's time and memory for 2B, 7B and 72B on 8 to 1024 GPUs from rates given as
parameters, and prints its assumptions. No table of it stands here: none of its GPU figures is measured. What it counts
is what the code does: the bytes that DeepSpeed's optimizer step moves at each ZeRO stage, beside AdamW's 28 a parameter
(sums flattened, copied, normed, clipped, cast, zeroed), and those of a layer's small operations
([scale_counts.py](../bench/scale_counts.py)); a test counts both in steps that are made.

What can be measured is the formula: `python -m bench.scale --check` times the single operations on one CPU thread
(products, attention, head, copies, clipping, AdamW, …), predicts a step of the trainer from them ({prompts} prompts,
{images} images, {group} completions of {tokens} tokens, hidden {hidden}, {layers} layers), and takes that step. On a
machine that others use, operations and step see other caches and clocks, and parts move by a third from run to run.
CPU seconds:

{origin}

| phase | predicted | measured | predicted / measured |
|---|---|---|---|
"""
RUNS = """## Runs, by hardware and date

| date | hardware | what | commit | targets met | file |
|---|---|---|---|---|---|
"""


def step_cells(r: Row) -> Cells:
    return r["variant"], _time(r), *_times(r), f"{r['cost']:.2f}", f"{r['error']:.0e}"


def rollout_cells(r: Row) -> Cells:
    return r["variant"], _time(r), seconds(r["cpu_p50_s"]), *_times(r)


def trl_cells(r: Row) -> Cells:
    phases = (seconds(r["phases_s"][name]) for name in ("gen", "ref", "update"))
    peak = f"{max(r['peak_bytes'], 0) / MIB:.0f} MiB"
    return r["variant"], f"{r['prompts_per_second']:.3f}", _time(r), *_times(r), peak, *phases


def packing_lines(rows: list[Row]) -> Iterator[str]:
    for r in (row for row in rows if "fill" in row):
        steps = f"{r['fewest']}" + (f"–{r['most']}" if r["most"] > r["fewest"] else "")
        shares = f"{r['imbalance']:.1%}", f"{r['saved']:.1%}"
        yield _line((r["draw"], r["ranks"], r["window"], f"{r['fill']:.1%}", f"{r['passes']:.1f}", steps, *shares))
    plans = [f"{r['lengths']:,} lengths {r['plan_ms']:.0f} ms" for r in rows if "plan_ms" in r]
    yield f"\nA plan takes, on one thread: {', '.join(plans)}."


def scale_lines(rows: list[Row]) -> Iterator[str]:
    (row,) = rows
    predicted, measured = row["predicted"] | {"sum": row["predicted_s"]}, row["measured"] | {"sum": row["measured_s"]}
    for name, value in predicted.items():
        yield _line((name, f"{value:.3f}", f"{measured[name]:.3f}", f"{value / measured[name]:.2f}"))


def each(cells: Callable[[Row], Cells]) -> Callable[[list[Row]], Iterator[str]]:
    """A line for each row."""
    return lambda rows: (_line(cells(row)) for row in rows)


SECTIONS: dict[str, tuple[str, Callable[[list[Row]], Iterable[str]]]] = {
    "step": (STEP, each(step_cells)),
    "rollout": (ROLLOUT, each(rollout_cells)),
    "trl_step": (TRL, each(trl_cells)),
    "packing": (PACKING, packing_lines),
    "scale": (SCALE, scale_lines),
}


def sections(folder: Path = FOLDER) -> str:
    """Of every bench and device that there are results of; the newest of each."""
    found = []
    for bench, (text, lines) in SECTIONS.items():
        for path, rows in newest(folder, bench).values():
            head = text.format(**{**rows[0], "origin": origin(path, rows)})
            found.append(head + "\n".join(lines(rows)) + "\n")
    return "\n".join(found).rstrip("\n") + "\n"


def runs_section(folder: Path = FOLDER) -> str:
    """Every file that this page is made of, and older ones: what was measured where and when."""
    lines = []
    for path in sorted(folder.glob("*.jsonl")):
        for bench in ("ops", *SECTIONS, "overhead", "dropins"):
            rows = of_bench(path, bench)
            if not rows:
                continue
            commits = " and ".join(dict.fromkeys(row["commit"] for row in rows))
            met = "–"
            if bench == "ops":
                known = [t for t in targets(rows) if t.reached is not None]
                met = f"{sum(t.met for t in known)} of {len(known)}"
            first, link = rows[0], f"[{path.name}](../bench/results/{path.name})"
            cells = (first["date"][:10], first["hardware"], f"`bench.{bench}`", commits, met, link)
            lines.append((first["hardware"], first["date"], _line(cells)))
    return RUNS + "\n".join(line for *_, line in sorted(lines)) + "\n"


def _line(cells: Iterable[Any]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _time(row: Row) -> str:
    return f"{seconds(row['wall_p50_s'])} [{seconds(row['wall_p20_s'])}, {seconds(row['wall_p80_s'])}]"


def _times(row: Row) -> Cells:
    """Times faster, by the clock and in CPU time."""
    return f"{row['times_wall']:.2f}", f"{row['times_cpu']:.2f}"
