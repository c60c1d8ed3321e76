"""This checkout against another commit: the same cases, in turns, in one run. Fails where this one is slower.

    python -m bench.compare --base REF [--device cpu|cuda] [--bound 1.15] [--only CASE ...] [--seconds 300]

The other commit is checked out beside (git worktree), its C++ library built if its sources differ, and today's `bench`
put over its own, so that both sides answer the same questions. Each side is a process that lives through the run. A
case is proved on both sides, then they take turns call by call, so that what the machine does meanwhile hits both; its
figure is the median over neighbours of this checkout's time over the other's. Above `--bound` is a slowdown: exit 1.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
BOUND, FEWEST, MOST = 1.15, 5, 41  # times slower; rounds of a case
SMALL = ("policy_loss_fp32_65536_grpo", "group_advantage", "box_iou")
CASES = {  # by the beginnings of their names: each op's own road, without what takes many seconds a call
    "cpu": ("grpo_loss_fp32_512", "grpo_loss_bf16_512x151936", "linear_grpo_loss_fp32_512", "selective_logprob_fp32")
    + ("matched_iou", "completions", *SMALL),
    "cuda": ("grpo_loss_bf16_8192", "linear_grpo_loss_bf16_8192", "selective_logprob_bf16", *SMALL),
}
LIBRARY = ("csrc", "CMakeLists.txt")  # what the C++ library is made of


class Figure(NamedTuple):
    case: str
    rounds: int
    now_s: float  # median
    base_s: float
    times: float  # median over the rounds of now / base

    def text(self, bound: float) -> str:
        verdict = f"SLOWER than {bound:g}" if self.times > bound else ""
        return f"{self.case:50} {self.now_s * 1e3:10.3f} ms {self.base_s * 1e3:10.3f} ms x {self.times:6.3f} {verdict}"


class Side:
    """A process that times a call whenever it is asked (bench/worker.py)."""

    def __init__(self, tree: Path, device: str, size: str) -> None:
        self.tree = tree
        words = [sys.executable, str(ROOT / "bench" / "worker.py"), str(tree), device, size]
        self.process = subprocess.Popen(
            words,
            cwd=tree,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=dict(os.environ, PYTHONPATH=""),
        )

    def ask(self, **question: str) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"bench.compare: the process in {self.tree} ended with {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def other_tree(ref: str) -> Iterator[Path]:
    """The files of `ref` with its library and today's bench."""
    git = ["git", "-C", str(ROOT)]
    if subprocess.run([*git, "rev-parse", "--quiet", "--verify", f"{ref}^{{commit}}"], capture_output=True).returncode:
        raise SystemExit(f"bench.compare: --base {ref} is no commit of {ROOT}; try HEAD~1, or fetch it")
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "base"
        subprocess.run([*git, "worktree", "add", "--quiet", "--detach", str(tree), ref], check=True)
        try:
            shutil.rmtree(tree / "bench", ignore_errors=True)
            shutil.copytree(ROOT / "bench", tree / "bench", ignore=shutil.ignore_patterns("results", "__pycache__"))
            same = not subprocess.run([*git, "diff", "--quiet", ref, "--", *LIBRARY]).returncode
            place_library(tree, same)
            yield tree
        finally:
            subprocess.run([*git, "worktree", "remove", "--force", str(tree)], check=True)


def place_library(tree: Path, same: bool) -> None:
    """This checkout's where the sources are the same, else one that is built of the tree's."""
    from univg_kernels import _library

    target = tree / "kernels" / "univg_kernels" / "_C.so"
    if same and _library.PATH is not None:
        shutil.copy(_library.PATH, target)
        return
    build = tree / "build_of_compare"
    definitions = [f"-DPython_EXECUTABLE={sys.executable}", "-DCMAKE_BUILD_TYPE=Release"]
    subprocess.run(["cmake", "-S", str(tree), "-B", str(build), "-G", "Ninja", *definitions], check=True)
    subprocess.run(["cmake", "--build", str(build)], check=True)
    shutil.copy(build / "_C.so", target)


def measure(case: str, variant: str, sides: tuple[Side, Side], seconds: float) -> Figure:
    """Turns of (this checkout, the other), after one of each to warm up."""
    found: tuple[list[float], list[float]] = ([], [])
    for side in sides:
        side.ask(variant=variant)
    end = time.monotonic() + seconds
    while len(found[0]) < FEWEST or (len(found[0]) < MOST and time.monotonic() < end):
        for i in (0, 1) if len(found[0]) % 2 else (1, 0):
            found[i].append(float(sides[i].ask(variant=variant)["seconds"]))
    times = statistics.median(a / b for a, b in zip(*found, strict=True))
    return Figure(case, len(found[0]), statistics.median(found[0]), statistics.median(found[1]), times)


def against(case: str, sides: tuple[Side, Side], base: str, bound: float, seconds: float) -> list[str]:
    """Proves, times and prints one case; what is wrong here, or slower. What only the other commit cannot do is told
    and no slowdown."""
    here, there = (side.ask(case=case) for side in sides)
    if there["problem"]:
        print(f"{case} {base}: {there['problem']}", flush=True)
    if here["problem"]:
        return [f"{case}: {here['problem']}"]
    problems = []
    for variant in here["variants"]:
        if there["problem"] or variant not in there["variants"]:
            continue
        figure = measure(f"{case}, {variant}", variant, sides, seconds)
        print(figure.text(bound), flush=True)
        if figure.times > bound:
            problems.append(f"{figure.case}: {figure.times:.3f} times the time of {base}, at most {bound:g}")
    return problems


def compare(
    base: str, device: str, bound: float, only: tuple[str, ...], seconds: float, size: str = "full"
) -> str | None:
    """None, or what was slower or could not be compared, as `SystemExit` wants it."""
    from .cases import all_cases

    names = [c.name for c in all_cases("tiny" if size == "tiny" else device) if c.name.startswith(only)]
    if not names:
        raise SystemExit(f"bench.compare: no case begins with {' or '.join(only)}; `python -m bench.ops --list`")
    problems = list[str]()
    with other_tree(base) as tree:
        sides = Side(ROOT, device, size), Side(tree, device, size)
        try:
            print(f"{'case':50} {'here':>13} {base:>13}  times slower (bound {bound:g})", flush=True)
            for name in names:
                problems += against(name, sides, base, bound, seconds / len(names))
        finally:
            for side in sides:
                side.end()
    return "\n".join(f"bench.compare: {p}" for p in problems) or None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, metavar="REF", help="the commit to compare with")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--bound", type=float, default=BOUND, help="times slower that is too much")
    parser.add_argument("--only", nargs="+", help="cases whose name begins with one of these")
    parser.add_argument("--seconds", type=float, default=300.0, help="for all cases together, beyond their proofs")
    parser.add_argument("--size", choices=("full", "tiny"), default="full", help="tiny: to try the code")
    options = parser.parse_args()
    only = tuple(options.only or CASES[options.device])
    raise SystemExit(compare(options.base, options.device, options.bound, only, options.seconds, options.size))


if __name__ == "__main__":
    main()
