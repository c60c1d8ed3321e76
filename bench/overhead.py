"""What of a step is neither model nor optimizer nor rollout: on the demo by the clock, at 2B shapes by count of work.

    python -m bench.overhead [--run FOLDER] [--rounds 5] [--out FILE.jsonl]

**demo**: a short run of the demo's recipe, or the run that lies in FOLDER. First the proof: in every step the phases'
seconds add up to the step's. The overhead is what is in data, score, sync, and in no phase at all.
**2b**: the trainer's own step (stage 1 of 24 samples, stage 2 of 16 prompts with 8 completions, of a 2B Qwen2-VL with
4 images a prompt) with engine, rollout and vision tower replaced by ones that answer at once: all that is left is
overhead. Its CPU time, of all threads and on one core at a time, stands against the step's model FLOPs at RATE, half
of an H100's peak, without any time for sampling, recomputed activations or the optimizer: the share is rather too
large.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from .device import find_device
from .harness import stamp
from .overhead_work import SHAPE, cpu_seconds, step_flops
from .run import save

OURS = ("data", "score", "sync", "other")  # phases; other: what is in none of them
RATE = 0.5 * 989.4e12  # FLOP/s: half of what an H100 is sold as, in bfloat16
BOUND = {"demo": 0.02, "2b": 0.01}
FIRST = 2  # steps of a stage that do not count: threads start, memory is touched for the first time
DEMO = ("--sft.max_steps=40", "--grpo.max_steps=8", "--evaluate.max_samples=8", "--save.steps=0")
Row = dict[str, Any]


def demo(folder: Path) -> list[Row]:
    """A row for each stage of a finished run."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [_stage(stage, [row for row in lines if row["stage"] == stage][FIRST:]) for stage in ("sft", "grpo")]


def _stage(stage: str, steps: Sequence[Row]) -> Row:
    times = [{k.removeprefix("timing_s/"): v for k, v in row.items() if k.startswith("timing_s/")} for row in steps]
    for row, of in zip(steps, times, strict=True):
        parts = sum(seconds for name, seconds in of.items() if name != "step")
        if abs(parts - of["step"]) > 1e-6 * of["step"]:
            raise SystemExit(
                f"{stage} step {row['step']}: phases add up to {parts:.6f} s, the step took {of['step']:.6f} s"
            )
    sums = {name: sum(of.get(name, 0.0) for of in times) for name in sorted({name for of in times for name in of})}
    whole = sums.pop("step") - sums.pop("save", 0.0)
    parts = {name: seconds / whole for name, seconds in sums.items()}
    share = sum(parts.get(name, 0.0) for name in OURS)
    row = {"bench": "overhead", "where": "demo", "stage": stage, "asked": BOUND["demo"], "steps": len(steps)}
    return row | {"step_s": whole / len(steps), "share": share, "parts": parts}


def run_demo() -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "univg_fast.train", "--config", "demo", f"--run.dir={folder}", *DEMO]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr[-4000:])
        return demo(Path(folder))


def counted(stage: str, rounds: int) -> Row:
    """The row of a stage at 2B shapes."""
    samples, metrics = cpu_seconds(stage, rounds)
    flops = step_flops(stage).step(metrics)
    ours = median(samples)
    row = {"bench": "overhead", "where": "2b", "stage": stage, "asked": BOUND["2b"], "rounds": rounds, "ours_s": ours}
    row |= {"flops": flops, "rate": RATE, "step_s": flops / RATE, "share": ours / (flops / RATE), **SHAPE}
    return row | {key: metrics[key] for key in ("group_tokens", "scored_tokens", "pack/rows", "num_samples")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a finished run of the demo's recipe, instead of a short one")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = demo(args.run) if args.run else run_demo()
    rows += [counted(stage, args.rounds) for stage in ("sft", "grpo")]
    for row in rows:
        verdict = "met" if row["share"] <= row["asked"] else "missed"
        ours = row["share"] * row["step_s"] * 1000
        asked = f"at most {row['asked']:.0%} asked: {verdict}"
        print(
            f"{row['where']} {row['stage']}: {ours:.1f} of {row['step_s'] * 1000:.0f} ms, {row['share']:.2%}; {asked}"
        )
        parts = {name: part for name, part in row.get("parts", {}).items() if name in OURS}
        print(*(f"  {name} {part:.2%}" for name, part in parts.items()), sep="\n") if parts else None
    if args.out:
        save(args.out, rows, stamp(find_device("cpu")))


if __name__ == "__main__":
    main()
