"""README's table of measured figures, of each script's newest CPU results; `python -m bench.report` fills it in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .results import FOLDER, newest
from .targets import targets

Row = dict[str, Any]
HEAD = ["| what, proved equal before it is timed | against | measured |", "|---|---|---|"]
MIB = 2**20
LINEAR = "linear_grpo_loss_fp32_2560x896x151936_target"
NAMES = {"ops": "ops", "step": "step", "rollout": "rollout", "trl_step": "whole step", "overhead": "overhead"}


def first_screen(folder: Path = FOLDER) -> str:
    """The table, and where its figures come from. What no file holds has no line."""
    found = {bench: run["cpu"] for bench in NAMES if "cpu" in (run := newest(folder, bench))}
    makers = {"ops": _ops, "step": _step, "rollout": _rollout, "trl_step": _trl, "overhead": _overhead}
    lines = [line for bench, (_, rows) in found.items() for line in makers[bench](rows)]
    return "\n".join([*HEAD, *lines, "", _source(found), ""])


def _source(found: dict[str, tuple[Path, list[Row]]]) -> str:
    rows = [rows[0] for _, rows in found.values()]
    machines = " and ".join(dict.fromkeys(f"{row['hardware']}, {row['isa']}" for row in rows))
    versions = " and ".join(dict.fromkeys(row["versions"]["torch"] for row in rows))
    threads = " or ".join(dict.fromkeys(str(row["threads"]) for row in rows))
    dates = " and ".join(dict.fromkeys(row["date"][:10] for row in rows))
    loads = [row["load_average"] for row in rows]
    files = ", ".join(f"[{NAMES[bench]}](bench/results/{path.name})" for bench, (path, _) in found.items())
    load = f"load average {min(loads):.1f} to {max(loads):.1f}"
    machine = f"{machines}, {threads} thread{'s' * (threads != '1')}; torch {versions}; {dates}"
    return f"{machine}. Ratios are within one run, on a machine that others used, too ({load}): {files}."


def _ops(rows: list[Row]) -> list[str]:
    timed = {(row["case"], row["variant"]): row for row in rows if row.get("status") == "timed"}
    reached = {target.what: target.reached for target in targets(rows) if target.reached is not None}
    lines = []
    for dtype in ("fp32", "bf16"):
        case = f"grpo_loss_{dtype}_512x151936"
        faster = reached.get(f"{case}: times faster than eager torch, the faster of two")
        if faster is not None:
            ours, theirs = (max(timed[case, name]["extra_bytes"], 0) for name in ("univg cpp", "eager log_softmax"))
            extra = f"{ours / MIB:.0f} instead of {theirs / MIB:.0f} MiB of extra memory"
            what = f"GRPO loss and gradient of logits, 512 × 151,936, {dtype}"
            lines.append(f"| {what} | eager torch | {faster:.1f} × faster; {extra} |")
    share = reached.get(f"{LINEAR}: time over three bare products")
    if share is not None:
        row = timed[LINEAR, "univg cpp"]
        extra = f"{row['extra_bytes'] / MIB:.0f} MiB extra, where all logits take {row['avoided_bytes'] / MIB:,.0f}"
        what = "GRPO loss and gradients of hidden states, 2,560 × 896 × 151,936, fp32"
        lines.append(f"| {what} | its three matrix products alone | {share:.2f} of their time; {extra} |")
    loop, ours = (timed.get(("completions_fp32_10000", name)) for name in ("python loop", "univg cpp"))
    if loop and ours:
        faster, taken = loop["wall_p50_s"] / ours["wall_p50_s"], ours["cpu_p50_s"] * 1e3
        what = "10,000 completions parsed and scored"
        lines.append(f"| {what} | a loop with regular expressions | {faster:.1f} × faster; {taken:.0f} ms |")
    faster = reached.get("box_iou: times faster than a Python loop")
    if faster is not None:
        lines.append(f"| IoU of 100,000 pairs of boxes | a Python loop | {faster:.0f} × faster |")
    return lines


def _step(rows: list[Row]) -> list[str]:
    row = _ours(rows)
    what = f"reference and policy pass with gradients: {row['prompts']} prompts of {row['images']} images, "
    what += f"{row['group']} answers each"
    return [f"| {what} | transformers on {row['prompts'] * row['group']} whole sequences | {_times(row)} |"]


def _rollout(rows: list[Row]) -> list[str]:
    row = _ours(rows)
    what = f"sampling {row['group']} answers of {row['tokens']} tokens for each of {row['prompts']} prompts of "
    return [f"| {what}{row['images']} images | transformers' `generate` | {_times(row)} |"]


def _trl(rows: list[Row]) -> list[str]:
    return [f"| a whole step, from image files to the optimizer | TRL's `GRPOTrainer` | {_times(_ours(rows))} |"]


def _overhead(rows: list[Row]) -> list[str]:
    share = {row["stage"]: 100 * row["share"] for row in rows if row["where"] == "demo"}
    stages = f"{share['sft']:.1f} % in stage 1, {share['grpo']:.1f} % in stage 2"
    return [f"| of the demo's steps: neither model, optimizer nor rollout | – | {stages} |"]


def _ours(rows: list[Row]) -> Row:
    return next(row for row in rows if row["variant"] == "univg")


def _times(row: Row) -> str:
    return f"{row['times_wall']:.1f} × faster (CPU time: {row['times_cpu']:.1f} ×)"
