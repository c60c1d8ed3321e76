"""One step of other GRPO codebases, as they come and with the drop-in, in one run:

    python -m bench.dropins [--host NAME] [--size default|tiny] [--rounds 5] [--budget SECONDS] [--out FILE.jsonl]

A step is the host's own loss on the same tokens and weights, forward and backward; the optimizer and sampling, which a
drop-in leaves alone, are not in it. First the proof: losses and gradients are equal. Only then times and peak memory
(above weights and batch, gradients included), in turns. A host that is wrong or breaks has a row that says so, and the
command ends with 1; one that is not installed has a row, too.
What a step is, and which parts of a host are its own, is told at the top of bench/dropin_NAME.py.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .device import Device, find_device
from .dropin_host import ROOT, Step
from .harness import measure, stamp, summarise
from .results import Row, read
from .run import save
from .verdict import failure

HOSTS = {  # -> the module with problem(size): (the host's step, the same with the drop-in)
    "trl": "bench.dropin_trl",
    "verl": "bench.dropin_verl",
    "vlm_r1": "bench.dropin_vlm_r1",
    "ms_swift": "bench.dropin_ms_swift",
    "openrlhf": "bench.dropin_openrlhf",
    "easyr1": "bench.dropin_easyr1",
}
ALONE = ("verl",)  # patches transformers' classes and makes a process group: has a process of its own
VARIANTS = ("host", "drop-in")
TOLERANCE = 1e-5  # relative difference of the losses, fp32
GRADIENTS = 1e-4  # norm of the difference of all gradients over their norm, fp32
LEAST_PEAK = 2.0**20  # bytes; a step whose peak hides in what is resident has no ratio


def compare(host: str, size: str, device: Device, rounds: int, seconds: float) -> list[Row]:
    """A row for each of VARIANTS; `times_wall`, `times_cpu`, `times_memory` (None where a peak is below LEAST_PEAK):
    the host's figure over this one's. One row with a status of "absent: …", "wrong: …" or "failed: …" otherwise."""
    row = _row(host, size)
    try:
        steps = _steps(host, size)
        errors = _errors(steps)
        if wrong := _wrong(*errors):
            return [row | {"variant": "", "status": f"wrong: {wrong}"}]
        ways: Any = {name: lambda step=step: _ready(step, steps) for name, step in steps.items()}
        samples, failures = measure(ways, device, "hot", rounds, seconds)
    except ModuleNotFoundError as error:
        return [row | {"variant": "", "status": f"absent: {error}"}]
    except Exception as error:  # the others are measured all the same
        return [row | {"variant": "", "status": failure(error)}]
    if failures:
        return [row | {"variant": name, "status": why} for name, why in failures.items()]
    summaries = {name: summarise(found) for name, found in samples.items()}
    base = summaries["host"]
    return [
        row
        | {"variant": name, "status": "timed", "error": errors[0], "gradient_error": errors[1], **summary}
        | {f"times_{clock}": base[f"{clock}_p50_s"] / summary[f"{clock}_p50_s"] for clock in ("wall", "cpu")}
        | {"times_memory": times_memory(base["peak_bytes"], summary["peak_bytes"])}
        | {"samples_s": [round(s.seconds, 4) for s in samples[name]]}
        for name, summary in summaries.items()
    ]


def _row(host: str, size: str) -> Row:
    return {"bench": "dropins", "host": host, "size": size, "dtype": "torch.float32"}


def times_memory(host: float, ours: float) -> float | None:
    return host / ours if min(host, ours) >= LEAST_PEAK else None


def _steps(host: str, size: str) -> dict[str, Step]:
    problem: Callable[[str], tuple[Step, Step]] = importlib.import_module(HOSTS[host]).problem
    return dict(zip(VARIANTS, problem(size), strict=True))


def _errors(steps: dict[str, Step]) -> tuple[float, float]:
    """Relative difference of the two losses, and of the gradients (norms of all weights): inf for none."""
    losses, gradients = [], []
    for step in steps.values():
        losses.append(float(_ready(step, steps)()))
        gradients.append([w.new_zeros(()) if w.grad is None else w.grad.clone() for w in step.weights])
    theirs, ours = gradients
    difference, norm = (
        sum(float(x.double().square().sum()) for x in xs) ** 0.5
        for xs in ([a - b for a, b in zip(theirs, ours, strict=True)], theirs)
    )
    return abs(losses[1] - losses[0]) / max(abs(losses[0]), 1e-3), difference / norm if norm else math.inf


def _wrong(loss: float, gradients: float) -> str:
    if not loss <= TOLERANCE:
        return f"expected the host's loss within {TOLERANCE:.0e} of it, got {loss:.1e}"
    if not gradients <= GRADIENTS:
        return f"expected the host's gradients within {GRADIENTS:.0e} of their norm, got {gradients:.1e}"
    return ""


def _ready(step: Step, steps: dict[str, Step]) -> Callable[[], torch.Tensor]:
    """What the last step left goes back to the system, else this one's peak would hide in it."""
    for weight in (w for each in steps.values() for w in each.weights):
        weight.grad = None
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return step.run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", choices=tuple(HOSTS), help="only this one")
    parser.add_argument("--size", choices=("default", "tiny"), default="default", help="tiny: to try the code")
    parser.add_argument("--rounds", type=int, default=5, help="that count, after one to warm up")
    parser.add_argument("--budget", type=float, default=60.0, help="seconds a host after which no round above 3 begins")
    parser.add_argument("--out", type=Path, help="write the rows to this file")
    options = parser.parse_args()
    device, rows = find_device("cpu"), list[Row]()
    origin = stamp(device)
    for host in [options.host] if options.host else HOSTS:
        if host in ALONE and not options.host:
            found = in_a_process(host, options)
        else:
            found = compare(host, options.size, device, options.rounds, options.budget)
            print(*map(line, found), sep="\n", flush=True)
        rows += found
        if options.out:
            save(options.out, rows, origin)
    if any(row["status"].startswith(("wrong", "failed")) for row in rows):
        raise SystemExit(1)


def in_a_process(host: str, options: argparse.Namespace) -> list[Row]:
    """The rows that this command has of `host` alone; it prints them."""
    words = ["--host", host, "--size", options.size, "--rounds", str(options.rounds), "--budget", str(options.budget)]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "rows.jsonl")
        command = [sys.executable, "-m", "bench.dropins", *words, "--out", str(out)]
        code = subprocess.run(command, cwd=ROOT).returncode
        if out.exists():
            return read(out)
    return [_row(host, options.size) | {"variant": "", "status": f"failed: its process ended with {code}"}]


def line(row: Row) -> str:
    if row["status"] != "timed":
        return f"{row['host']:10} {row['variant']:8} {row['status']}"
    memory = "–" if row["times_memory"] is None else f"{row['times_memory']:.2f}x"
    return (
        f"{row['host']:10} {row['variant']:8} {row['wall_p50_s'] * 1e3:9.1f} ms {row['times_wall']:5.2f}x "
        f"{row['peak_bytes'] / 2**20:9.1f} MiB {memory:>7}"
    )


if __name__ == "__main__":
    main()
