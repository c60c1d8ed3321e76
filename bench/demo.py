"""What finished runs of `make demo` reached, as rows of bench/results; the README's table is made of them.

python -m bench.demo runs/demo runs/seed1 ... [--commit REF] --out bench/results/demo_cpu_DATE.jsonl
Each folder becomes a row: Acc@0.5 before and after each stage with 95 % intervals, by task, the paired change that
stage 2 made, and how many answers name the right image. Nothing is run. Prints the table.
"""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from univg_fast.evaluate.metrics import paired_difference

HEAD = "| seed | Acc@0.5 before | after SFT (95 %) | after GRPO (95 %) | change (95 %, paired) |\n|---|---|---|---|---|"


def read_run(folder: Path, commit: str | None = None) -> dict[str, Any]:
    """The row of one run. ValueError: it has no evaluation of each stage yet."""
    evals, answers = {}, {}
    for name in ("before", "sft", "grpo"):
        path = folder / "eval" / f"{name}.json"
        if not path.is_file():
            raise ValueError(f"{path}: expected the evaluations of a finished run; give its command again first")
        evals[name] = json.loads(path.read_text())
        answers[name] = [json.loads(line) for line in path.with_suffix(".jsonl").read_text().splitlines()]
    env = json.loads((folder / "env.json").read_text())
    config = yaml.safe_load((folder / "config.yaml").read_text())
    done = datetime.fromtimestamp((folder / "eval" / "grpo.json").stat().st_mtime, UTC)
    return {
        "bench": "demo",
        "seed": config["run"]["seed"],
        "n": evals["grpo"]["n"],
        "acc@0.5": {name: found["acc@0.5"] for name, found in evals.items()},
        "ci95": {name: found["acc@0.5_ci95"] for name, found in evals.items()},
        "tasks": {
            name: {task: found["acc@0.5"] for task, found in stage["tasks"].items()} for name, stage in evals.items()
        },
        "image_acc": {name: found["images"]["acc"] for name, found in evals.items() if found.get("images")},
        "change": paired_difference(answers["grpo"], answers["sft"]),
        "device": "cpu" if not env["gpus"] else "cuda",
        "hardware": env["cpu"],
        "threads": env["threads"],
        "versions": {name: env["packages"][name] for name in ("torch", "transformers", "deepspeed")},
        "commit": env["commit"] or commit,
        "date": done.isoformat(timespec="seconds"),
    }


def line(row: dict[str, Any]) -> str:
    """A line of the README's table, in per cent."""
    acc, ci = row["acc@0.5"], row["ci95"]
    stages = [f"{100 * acc[k]:.1f} ({100 * ci[k][0]:.1f}–{100 * ci[k][1]:.1f})" for k in ("sft", "grpo")]
    low, high = row["change"]["ci95"]
    change = f"{100 * row['change']['difference']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
    return f"| {row['seed']} | {100 * acc['before']:.1f} | {stages[0]} | {stages[1]} | {change} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="DIR", help="run.dir of a finished demo")
    parser.add_argument("--commit", help="of runs whose env.json knows none (a copy without .git)")
    parser.add_argument("--out", type=Path, help="add the rows to this file")
    given = parser.parse_args()
    rows = [read_run(folder, given.commit) for folder in given.runs]
    if given.out:
        with given.out.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    print(HEAD, *map(line, rows), sep="\n")


if __name__ == "__main__":
    main()
