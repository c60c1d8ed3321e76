"""Everything in one command and one file: checks first, then times, each row with hardware, versions and commit.

    python -m bench.suite [--device cpu|cuda] [--only PART ...] [--minutes M] [--size full|tiny] [--out FILE.jsonl]
    python -m bench.suite --base REF [--bound 1.15]   # this checkout against another commit: see bench/compare.py

The parts are commands of this folder, one after the other. Each is told how long it may measure and is ended at its
limit; the last one, `ops`, takes what is left, so that the whole holds `--minutes`: 10, on a GPU 8. Nothing is timed
where the checks fail; a part that fails or is ended is named at the end, and the command ends with 1.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from .compare import BOUND, CASES, compare

ROOT = Path(__file__).resolve().parents[1]
MINUTES = {"cpu": 10.0, "cuda": 8.0}
MARGIN = 25.0  # seconds of the last part's that are for starting and for the call that is under way at the end
COMPILERS = ("torch.compile", "apple cce")  # half a minute each; on a CPU Apple's is torch.compile of its reference


class Part(NamedTuple):
    """`words`: of `python -m bench.`; `seconds`: at most; the last part's are at least what it needs to be of use."""

    name: str
    seconds: float
    words: tuple[str, ...]


CHECKS = ("ops", "--repeats", "1", "--without", *COMPILERS)  # each op and face at sizes of a moment
OPS_CPU = ("grpo_loss_fp32_512", "grpo_loss_bf16_512", "box_iou", "matched_iou", "completions", "linear")
OPS_CPU += ("group_advantage", "policy_loss", "selective", "shared_prefix")
OPS_TINY = ("--without", *COMPILERS, "univg reference", "--repeats", "1", "--only", "grpo_loss_fp32", "box_iou")
PARTS = {
    "cpu": (
        Part("checks", 30, CHECKS),
        Part("packing", 15, ("packing",)),
        Part("scale", 45, ("scale", "--check")),
        Part("step", 80, ("step", "--size", "half", "--rounds", "2", "--budget", "40")),
        Part("rollout", 85, ("rollout", "--size", "half", "--rounds", "3", "--budget", "40")),
        Part("trl_step", 205, ("trl_step", "--size", "half", "--rounds", "1", "--budget", "60")),
        Part("ops", 135, ("ops", "--only", *OPS_CPU, "--without", "univg reference", "apple cce")),
    ),
    "cuda": (
        Part("checks", 75, CHECKS),
        Part("packing", 20, ("packing",)),
        Part("step", 80, ("step", "--size", "2b", "--rounds", "3", "--budget", "30")),
        Part("rollout", 60, ("rollout", "--rounds", "3", "--budget", "30")),
        Part("trl_step", 60, ("trl_step", "--rounds", "2", "--budget", "30")),
        Part("ops", 170, ("ops",)),
    ),
}
SIZED = ("step", "rollout", "trl_step", "ops")  # know --size; without --device: packing


def command(part: Part, device: str, size: str, out: Path, left: float) -> list[str]:
    words = [sys.executable, "-m", f"bench.{part.words[0]}", *part.words[1:], "--out", str(out)]
    if part.words[0] in SIZED:
        words += ["--device", device]
        if size == "tiny" or part.name == "checks":
            words += ["--size", "tiny"]
    if size == "tiny":
        words += {"packing": ["--windows", "1"], "scale": ["--size", "tiny"]}.get(part.name, [])
    if part.name == "ops":
        words += ["--budget", f"{max(left - MARGIN, 1):.0f}"]
        words += OPS_TINY if size == "tiny" else ()
    return words


def run_part(words: list[str], seconds: float) -> str:
    """What went wrong, or nothing. The part and all that it started are ended after `seconds`."""
    process = subprocess.Popen(words, cwd=ROOT, start_new_session=True)
    try:
        code = process.wait(max(seconds, 1))
    except subprocess.TimeoutExpired:
        return f"ended after {seconds:.0f} s"
    finally:  # also where this command is interrupted
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return f"ended with {code}" if code else ""


def run(device: str, parts: list[Part], size: str, seconds: float) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """(rows of all parts, what went wrong with which)."""
    rows, problems, end = list[dict[str, Any]](), dict[str, str](), time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        for i, part in enumerate(parts):
            last, left, out = i == len(parts) - 1, end - time.monotonic(), Path(folder, f"{part.name}.jsonl")
            limit = left if last else min(part.seconds, left - parts[-1].seconds)
            print(f"\n== {part.name}: at most {limit:.0f} s of {left:.0f} ==", flush=True)
            problem = run_part(command(part, device, size, out, limit), limit) if limit > 1 else "no time left"
            if problem:
                problems[part.name] = problem
                print(f"bench: {part.name} {problem}", flush=True)
            if part.name == "checks":
                if problem:
                    break
                continue  # its times mean nothing
            found = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
            rows += found
    return rows, problems


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    names = list(dict.fromkeys(part.name for parts in PARTS.values() for part in parts))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=tuple(PARTS), default="cpu")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="PART", help=", ".join(names))
    parser.add_argument("--minutes", type=float, help="of the whole: 10, on a GPU 8")
    parser.add_argument("--size", choices=("full", "tiny"), default="full", help="tiny: to try the code")
    parser.add_argument("--out", type=Path, help="bench/results/suite_DEVICE_DATE.jsonl, if not tiny")
    parser.add_argument("--base", metavar="REF", help="compare with this commit instead")
    parser.add_argument("--bound", type=float, default=BOUND, help="of --base: times slower that is too much")
    options = parser.parse_args()
    if options.base:
        raise SystemExit(compare(options.base, options.device, options.bound, CASES[options.device], seconds=300.0))
    minutes = options.minutes or MINUTES[options.device]
    parts = [part for part in PARTS[options.device] if part.name in options.only]
    began = time.monotonic()
    rows, problems = run(options.device, parts, options.size, minutes * 60)
    out = options.out
    if out is None and options.size == "full":
        out = ROOT / "bench" / "results" / f"suite_{options.device}_{time.strftime('%Y%m%d')}.jsonl"
    if out is not None and rows:
        write(out, rows)
        print(f"{len(rows)} rows in {out}; `python -m bench.report` puts them into docs/benchmarks.md")
    print(f"{(time.monotonic() - began) / 60:.1f} of {minutes:g} minutes")
    if problems:
        raise SystemExit("\n".join(f"bench: {name} {problem}" for name, problem in problems.items()))


if __name__ == "__main__":
    main()
