"""Measuring: variants take turns, inside a box of time; every row says where it comes from."""

from __future__ import annotations

import gc
import platform
import shutil
import statistics
import subprocess
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from .device import Device, Sample
from .verdict import failure
from .work import Prepare

FEWEST = 3  # rounds, whatever the box says
SLOW = 1 / 6  # a variant that takes more than this share of the box in one call gets one sample alone


def measure(
    variants: dict[str, Prepare], device: Device, mode: str, rounds: int, seconds: float
) -> tuple[dict[str, list[Sample]], dict[str, str]]:
    """(samples of each variant, why others have none): one round of all to warm up, then up to `rounds` that count,
    within `seconds`.

    They take turns, each round in another order: what else the machine does hits all alike.
    """
    gc.freeze()  # with this many packages loaded a collection takes 10 ms
    end = time.monotonic() + seconds
    warm, failures = _warm_up(variants, device, mode)
    samples: dict[str, list[Sample]] = {name: [] for name in warm}
    order = list(warm)
    for name in [n for n in order if warm[n].seconds > SLOW * seconds]:
        samples[name].append(once(variants[name], device, mode))
        if samples[name][0].seconds > SLOW * seconds:  # it was not the compilation
            order.remove(name)
    for done in range(rounds):
        if done >= FEWEST and time.monotonic() > end:
            break
        for i in range(len(order)):
            name = order[(done + i) % len(order)]
            samples[name].append(once(variants[name], device, mode))
    return samples, failures


def _warm_up(variants: dict[str, Prepare], device: Device, mode: str) -> tuple[dict[str, Sample], dict[str, str]]:
    """One call of each; what one that was right at a small size raises at this one, such as for want of memory."""
    warm, failures = {}, {}
    for name, prepare in variants.items():
        try:
            warm[name] = once(prepare, device, mode)
        except Exception as error:
            failures[name] = failure(error)
            device.release()
    return warm, failures


def once(prepare: Prepare, device: Device, mode: str) -> Sample:
    run = prepare()
    gc.collect()
    gc.disable()
    try:
        return device.sample(run, mode)
    finally:
        gc.enable()


def summarise(samples: list[Sample]) -> dict[str, float]:
    """Wall and CPU seconds as 20th, 50th and 80th percentile, median peak memory, number of rounds."""

    def at(values: list[float], share: float) -> float:
        return sorted(values)[round(share * (len(values) - 1))]

    columns = {"wall": [s.seconds for s in samples], "cpu": [s.cpu_seconds for s in samples]}
    out = {f"{kind}_p{p}_s": at(c, p / 100) for kind, c in columns.items() for p in (20, 50, 80)}
    return {**out, "peak_bytes": statistics.median(s.peak_bytes for s in samples), "rounds": len(samples)}


PACKAGES = ("torch", "triton", "liger-kernel", "trl", "cut-cross-entropy", "quack-kernels")


def stamp(device: Device) -> dict[str, Any]:
    """What every row carries: hardware, versions, commit, date and how busy the machine was."""
    return {
        "device": device.kind,
        **device.hardware(),
        "versions": {p: _version(p) for p in PACKAGES if _version(p)} | {"python": platform.python_version()},
        "commit": commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def commit() -> str:
    """Of this checkout; "unknown" in a copy without git."""
    if shutil.which("git") is None:
        return "unknown"
    git = ["git", "-C", str(Path(__file__).parent)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    if head.returncode:
        return "unknown"
    status = [*git, "status", "--porcelain", "--", "../kernels", "../csrc"]
    changed = subprocess.run(status, capture_output=True, text=True).stdout
    return head.stdout.strip() + ("+changes" if changed else "")


def _version(package: str) -> str:
    if package == "torch":
        return torch.__version__
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
