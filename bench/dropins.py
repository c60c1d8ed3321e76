"""One step of other GRPO codebases, as they come and with the drop-in, in one run:

    python -m bench.dropins [--host NAME] [--size default|tiny] [--rounds 5] [--budget SECONDS] [--out FILE.jsonl]

A step is the host's own loss on the same tokens and weights, forward and backward; the optimizer and sampling, which a
drop-in leaves alone, are not in it. First the proof: both losses are equal. Only then times and peak memory, in turns.
What a step is, and which parts of a host are its own, is told at the top of bench/dropin_NAME.py.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .device import Device, find_device
from .harness import measure, stamp, summarise
from .run import save

HOSTS = {  # -> the module with problem(size): (the host's step, the same with the drop-in), both to a loss
    "trl": "bench.dropin_trl",
    "verl": "bench.dropin_verl",
    "vlm_r1": "bench.dropin_vlm_r1",
    "ms_swift": "bench.dropin_ms_swift",
    "openrlhf": "bench.dropin_openrlhf",
    "easyr1": "bench.dropin_easyr1",
}
VARIANTS = ("host", "drop-in")
TOLERANCE = 1e-5  # relative difference of the losses, fp32
Row = dict[str, Any]


def compare(host: str, size: str, device: Device, rounds: int, seconds: float) -> list[Row]:
    """A row for each of VARIANTS; `times_wall`, `times_cpu`, `times_memory`: the host's figure over this one's.

    SystemExit where the losses differ; a host that cannot be imported has one row that says so.
    """
    row = {"bench": "dropins", "host": host, "size": size, "dtype": "torch.float32"}
    try:
        problem: Callable[[str], tuple[Callable[[], Any], Callable[[], Any]]]
        problem = importlib.import_module(HOSTS[host]).problem
        steps = dict(zip(VARIANTS, problem(size), strict=True))
    except ModuleNotFoundError as error:
        return [row | {"variant": "", "status": f"absent: {error}"}]
    theirs, ours = (float(step()) for step in steps.values())
    error = abs(ours - theirs) / max(abs(theirs), 1e-3)
    if not error <= TOLERANCE:
        raise SystemExit(f"{host}: expected the host's loss {theirs:.8g} within {TOLERANCE:.0e} of it, got {ours:.8g}")
    variants: Any = {name: lambda step=step: trimmed(step) for name, step in steps.items()}
    samples, failures = measure(variants, device, "hot", rounds, seconds)
    if failures:
        raise SystemExit(f"{host}: {failures}")
    summaries = {name: summarise(found) for name, found in samples.items()}
    base = summaries["host"]
    return [
        row
        | {"variant": name, "status": "timed", "error": error, **summary}
        | {f"times_{clock}": base[f"{clock}_p50_s"] / summary[f"{clock}_p50_s"] for clock in ("wall", "cpu")}
        | {"times_memory": base["peak_bytes"] / max(summary["peak_bytes"], 1.0)}
        | {"samples_s": [round(s.seconds, 4) for s in samples[name]]}
        for name, summary in summaries.items()
    ]


def trimmed(step: Callable[[], Any]) -> Callable[[], Any]:
    """Freed memory goes back to the system before the step, else its peak would hide in what the last one freed."""
    ctypes.CDLL(None).malloc_trim(0)
    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", choices=tuple(HOSTS), help="only this one")
    parser.add_argument("--size", choices=("default", "tiny"), default="default", help="tiny: to try the code")
    parser.add_argument("--rounds", type=int, default=5, help="that count, after one to warm up")
    parser.add_argument("--budget", type=float, default=60.0, help="seconds a host after which no round above 3 begins")
    parser.add_argument("--out", type=Path, help="write the rows to this file")
    options = parser.parse_args()
    device, rows = find_device("cpu"), list[Row]()
    for host in [options.host] if options.host else HOSTS:
        found = compare(host, options.size, device, options.rounds, options.budget)
        rows += found
        for row in found:
            if row["status"] != "timed":
                print(f"{host:10} {row['status']}")
                continue
            print(
                f"{host:10} {row['variant']:8} {row['wall_p50_s'] * 1e3:9.1f} ms {row['times_wall']:5.2f}x "
                f"{row['peak_bytes'] / 2**20:9.1f} MiB {row['times_memory']:6.2f}x"
            )
    if options.out:
        save(options.out, rows, stamp(device))


if __name__ == "__main__":
    main()
