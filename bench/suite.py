"""Everything in one command and one file: checks first, then times, each row with hardware, versions and commit.

    python -m bench.suite [--device cpu|cuda] [--only PART ...] [--minutes M] [--size full|tiny] [--out FILE.jsonl]
    python -m bench.suite --base REF [--bound 1.15]   # this checkout against another commit: see bench/compare.py

The parts are commands of this folder, one after the other. Each is told how long it may measure and is ended at its
limit; `ops` takes what the others leave, so that the whole holds `--minutes`: 10, on a GPU 8. Every part proves before
it times, too; where the checks find something wrong nothing is timed. A part that fails or is ended is named at the
end, and the command ends with 1; one whose packages are not installed is named and left out. Rows are in the file
seconds after their part has written them: `ops` after each case, the others when they end. A part that is ended loses
those it has not written.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from .compare import BOUND, CASES, compare
from .results import Row, read, write

ROOT = Path(__file__).resolve().parents[1]
MINUTES = {"cpu": 10.0, "cuda": 8.0}
LOOK = 2.0  # seconds between two looks at what a part has written
MARGIN = 25.0  # seconds of the ops' that are for starting and for the call that is under way at the end
COMPILERS = ("torch.compile", "apple cce")  # half a minute each; on a CPU Apple's is torch.compile of its reference


class Part(NamedTuple):
    """`words`: of `python -m bench.`; `seconds`: at most; of `ops` what it needs at least, to be of use."""

    name: str
    seconds: float
    words: tuple[str, ...]
    packages: tuple[str, ...] = ()  # that it cannot do without, and that may be missing


CHECKS = ("ops", "--repeats", "1", "--without", *COMPILERS)  # each op and face at sizes of a moment
# On a GPU one op of each kind: Triton compiles for each size, which for all of them would take longer than to prove
# them where they are timed.
CHECKS_CUDA = (*CHECKS, "--only", "grpo_loss_bf16", "linear_ce_bf16", "shared_prefix_attention_bf16", "box_iou")
TRL = ("trl", "datasets", "deepspeed")
OPS_CPU = ("grpo_loss_fp32_512", "grpo_loss_bf16_512", "box_iou", "matched_iou", "completions", "linear")
OPS_CPU += ("group_advantage", "policy_loss", "selective", "shared_prefix")
OPS_TINY = ("--without", *COMPILERS, "univg reference", "--repeats", "1", "--only", "grpo_loss_fp32", "box_iou")
PARTS = {
    "cpu": (
        Part("checks", 30, CHECKS),
        Part("packing", 15, ("packing",)),
        Part("scale", 45, ("scale", "--check"), ("deepspeed",)),
        Part("step", 80, ("step", "--size", "half", "--rounds", "2", "--budget", "40")),
        Part("rollout", 85, ("rollout", "--size", "half", "--rounds", "3", "--budget", "40")),
        Part("trl_step", 205, ("trl_step", "--size", "half", "--rounds", "1", "--budget", "60"), TRL),
        Part("ops", 135, ("ops", "--only", *OPS_CPU, "--without", "univg reference", "apple cce")),
    ),
    "cuda": (
        Part("checks", 60, CHECKS_CUDA),
        Part("ops", 170, ("ops",)),
        Part("step", 90, ("step", "--size", "2b", "--rounds", "3", "--budget", "30")),
        Part("rollout", 60, ("rollout", "--rounds", "3", "--budget", "30")),
        Part("trl_step", 60, ("trl_step", "--rounds", "2", "--budget", "30"), (*TRL, "nvtx")),
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


def run_part(words: list[str], seconds: float, look: Callable[[], Any] = lambda: None) -> int | None:
    """Its exit code; None where it and all that it started were ended after `seconds`. `look` is called meanwhile."""
    process, end = subprocess.Popen(words, cwd=ROOT, start_new_session=True), time.monotonic() + max(seconds, 1)
    try:
        while (left := end - time.monotonic()) > 0:
            try:
                return process.wait(min(left, LOOK))
            except subprocess.TimeoutExpired:
                look()
        return None
    finally:  # also where this command is interrupted
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def limit_of(i: int, parts: list[Part], left: float) -> float:
    """Seconds of part `i`: what it may take, but `ops` keeps what it needs; for that one, all that later ones leave."""
    later = parts[i + 1 :]
    if parts[i].name == "ops":
        return left - sum(part.seconds for part in later)
    return min(parts[i].seconds, left - sum(part.seconds for part in later if part.name == "ops"))


def run(device: str, parts: list[Part], size: str, seconds: float, out: Path | None) -> tuple[int, dict[str, str]]:
    """(number of rows in `out`, what went wrong with which part)."""
    rows, problems, end = list[Row](), dict[str, str](), time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        for i, part in enumerate(parts):
            left, made = end - time.monotonic(), Path(folder, f"{part.name}.jsonl")
            limit = limit_of(i, parts, left)
            print(f"\n== {part.name}: at most {limit:.0f} s of {left:.0f} ==", flush=True)
            checks = part.name == "checks"  # its times mean nothing
            keep = partial(gathered, rows, made, None if checks else out)
            code = run_part(command(part, device, size, made, limit), limit, keep) if limit > 1 else None
            rows = rows if checks else keep()
            if code != 0:
                problems[part.name] = f"ended after {max(limit, 0):.0f} s" if code is None else f"ended with {code}"
                print(f"bench: {part.name} {problems[part.name]}", flush=True)
            if checks and code:
                break
    return len(rows), problems


def gathered(rows: list[Row], made: Path, out: Path | None) -> list[Row]:
    """`rows` and what a part has written so far; `out` has the same."""
    together = rows + read(made) if made.exists() else rows
    if out is not None and together:
        write(out, together)
    return together


def absent(part: Part) -> list[str]:
    return [name for name in part.packages if importlib.util.find_spec(name) is None]


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
    for part in filter(absent, parts):
        print(f"{part.name} is left out: {', '.join(absent(part))} is not installed", flush=True)
    parts = [part for part in parts if not absent(part)]
    began = time.monotonic()
    out = options.out
    if out is None and options.size == "full":
        out = ROOT / "bench" / "results" / f"suite_{options.device}_{time.strftime('%Y%m%d')}.jsonl"
    rows, problems = run(options.device, parts, options.size, minutes * 60, out)
    if out is not None and rows:
        print(f"{rows} rows in {out}; `python -m bench.report` puts them into docs/benchmarks.md")
    print(f"{(time.monotonic() - began) / 60:.1f} of {minutes:g} minutes")
    if problems:
        raise SystemExit("\n".join(f"bench: {name} {problem}" for name, problem in problems.items()))


if __name__ == "__main__":
    main()
