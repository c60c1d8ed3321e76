"""The section of docs/benchmarks.md about what a step does beside model, optimizer and rollout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .results import FOLDER, newest

TEXT = """## What a step does beside model, optimizer and rollout

`python -m bench.overhead`; [{name}](../bench/results/{name}), {hardware}, commit {commit}, {date}, load average
{load:.1f}.

**On the demo**, by the clock, in one run: what is in the phases data (waiting for samples and rows), score, sync,
and in no phase at all. The phases' seconds add up to the step's in every step, or the command ends. Checkpoints are
left out. At most 2 % is asked.

**At 2B shapes**, by count of work: the trainer's own step on one rank with engine, rollout and vision tower
replaced by ones that answer at once, so that planning, building rows, scoring, metrics, rollouts/ and metrics.jsonl
are left. Stage 1 is 24 samples, stage 2 16 prompts with {generations} completions of {response} tokens; a prompt
has {images} images of {image_tokens} tokens and {text} of text. The work is CPU time of all threads, as if one core
did it while the GPU waits, on a busy machine. It stands against the step's model FLOPs (Qwen2-VL-2B, frozen tower,
the formula of [metrics.md](metrics.md)) at {rate:.0f} TFLOP/s, half of an H100's peak, with no time for sampling,
for recomputed activations or for the optimizer: a real step is longer, and the share smaller. Decoding images is in
threads ahead of the step and not in these figures; the metric `data_wait` says whether they keep up. At most 1 % is
asked.

| where | stage | the step | of it ours | share | asked | |
|---|---|---|---|---|---|---|
{rows}

Of the demo's step, by phase: {parts}.
"""


def overhead_section(folder: Path = FOLDER) -> str:
    if not (found := newest(folder, "overhead")):
        return ""
    path, rows = found["cpu"]
    (counted,) = (row for row in rows if row["where"] == "2b" and row["stage"] == "grpo")
    return TEXT.format(
        name=path.name,
        hardware=counted["hardware"],
        commit=counted["commit"],
        date=counted["date"][:10],
        load=counted["load_average"],
        generations=8,
        response=counted["response_tokens"],
        images=counted["images"],
        image_tokens=counted["image_tokens"],
        text=counted["text_tokens"],
        rate=counted["rate"] / 1e12,
        rows="\n".join(map(_line, rows)),
        parts="; ".join(f"{row['stage']}: {_parts(row)}" for row in rows if row["where"] == "demo"),
    )


def _line(row: dict[str, Any]) -> str:
    ours, met = row["share"] * row["step_s"], "met" if row["share"] <= row["asked"] else "missed"
    times = f"{row['step_s'] * 1000:.0f} ms | {ours * 1000:.1f} ms | {row['share']:.2%}"
    return f"| {row['where']} | {row['stage']} | {times} | {row['asked']:.0%} | {met} |"


def _parts(row: dict[str, Any]) -> str:
    return ", ".join(f"{name} {share:.1%}" for name, share in sorted(row["parts"].items(), key=lambda item: -item[1]))
