"""Measuring on the CPU: interleaved repetitions, peak memory, and a stamp of what it was measured on."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

Run = Callable[[], Callable[[], Any]]
"""Prepares fresh inputs, not timed, and returns what is timed."""


def measure(runs: dict[str, Run], repeats: int) -> dict[str, dict[str, float]]:
    """Run each in turn, `repeats` rounds after one to warm up: what else the machine does hits all alike.

    Wall and CPU seconds (of all threads) as 20th, 50th and 80th percentile; peak resident memory above the inputs.
    On a busy machine the CPU seconds compare fairly, the wall seconds do not.
    """
    samples: dict[str, list[tuple[float, float, float]]] = {name: [] for name in runs}
    for round_ in range(repeats + 1):
        for name, prepare in runs.items():
            work = prepare()
            before = _reset_peak()
            wall, cpu = time.perf_counter(), time.process_time()
            work()
            sample = time.perf_counter() - wall, time.process_time() - cpu, _peak() - before
            if round_:
                samples[name].append(sample)
            del work
    return {name: _summary(values) for name, values in samples.items()}


def _summary(values: list[tuple[float, float, float]]) -> dict[str, float]:
    wall, cpu, peak = (sorted(column) for column in zip(*values, strict=True))

    def at(column: list[float], share: float) -> float:
        return column[round(share * (len(column) - 1))]

    out = {f"{kind}_p{p}_s": at(c, p / 100) for kind, c in (("wall", wall), ("cpu", cpu)) for p in (20, 50, 80)}
    return {**out, "peak_extra_bytes": statistics.median(peak)}


def _reset_peak() -> float:
    Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> float:
    """Highest resident size in bytes since the last reset (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024.0
    raise RuntimeError("no VmHWM in /proc/self/status; the memory column needs Linux")


def stamp() -> dict[str, Any]:
    """What every row carries: hardware, versions, commit, date and how busy the machine was."""
    git = ["git", "-C", str(Path(__file__).parent)]
    commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    changed = subprocess.run(
        [*git, "status", "--porcelain", "--", "../kernels", "../csrc"], capture_output=True, text=True
    )
    cpu = [x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")]
    return {
        "cpu": cpu[0].split(":")[1].strip() if cpu else platform.processor(),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit + ("+changes" if changed.stdout else ""),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def append_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")
