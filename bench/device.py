"""The machine under measurement: its clock, its memory, its own ceilings, and what it is. One class for each kind.

The two classes have the same methods and nothing else in `bench` asks which device it is, so that what runs on a GPU
is what tests run on the CPU.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch


class Sample(NamedTuple):
    seconds: float
    cpu_seconds: float  # of all threads of this process
    peak_bytes: float  # memory above what was there before


class Opened(NamedTuple):
    memory: float
    wall: float
    cpu: float


class Cpu:
    kind = "cpu"
    modes = ("fresh",)  # inputs are new copies, mostly out of the cache at these sizes
    copy_bytes, gemm_size, cache_bytes = 2**29, 2048, 2**25
    budget = 520.0  # seconds for all cases: `make bench` in ten minutes

    def __init__(self) -> None:
        self.torch = torch.device("cpu")

    def sample(self, run: Callable[[], Any], mode: str) -> Sample:
        if mode == "cold":
            self.flush()
        opened = self.open()
        kept = run()  # what it returns lives until memory has been read
        sample = self.close(opened)
        del kept
        return sample

    def open(self) -> Opened:
        """The clock starts; `close` makes the sample."""
        return Opened(self._reset_peak(), time.perf_counter(), time.process_time())

    def close(self, opened: Opened) -> Sample:
        seconds, cpu = time.perf_counter() - opened.wall, time.process_time() - opened.cpu
        return Sample(seconds, cpu, self._peak() - opened.memory)

    def flush(self) -> None:
        """Push everything else out of the cache that is worth the name."""
        torch.empty(self.cache_bytes, dtype=torch.uint8, device=self.torch).fill_(1)

    def finish(self) -> None:
        """Wait for what was launched."""

    def release(self) -> None:
        """Between two cases: give memory back."""

    @staticmethod
    def _reset_peak() -> float:
        Path("/proc/self/clear_refs").write_text("5")
        return Cpu._peak()

    @staticmethod
    def _peak() -> float:
        """Highest resident size in bytes since the last reset (Linux)."""
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024.0
        raise RuntimeError("no VmHWM in /proc/self/status; the memory column needs Linux")

    def hardware(self) -> dict[str, Any]:
        info = Path("/proc/cpuinfo")
        names = [x for x in info.read_text().splitlines() if x.startswith("model name")] if info.exists() else []
        return {
            "hardware": names[0].split(":")[1].strip() if names else platform.processor(),
            "isa": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
            "load_average": os.getloadavg()[0],
        }


class Cuda:
    kind = "cuda"
    modes = ("hot", "cold")  # cold: the L2 cache was overwritten just before
    copy_bytes, gemm_size, cache_bytes = 2**32, 8192, 2**28
    budget = 400.0  # seconds for all cases: `make gpu` in eight minutes

    def __init__(self) -> None:
        self.torch = torch.device("cuda", torch.cuda.current_device())
        torch.backends.cudnn.allow_tf32 = False  # transformers' patches are a convolution: proofs in fp32 are of fp32

    def sample(self, run: Callable[[], Any], mode: str) -> Sample:
        """Time on the device. Work queued in front hides what the host needs to launch up to about a millisecond, as
        the queue of a training step does; a host that waits for the device in between still shows."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        if mode == "cold":
            self.flush()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before, cpu = torch.cuda.memory_allocated(), time.process_time()
        torch.cuda._sleep(2_000_000)  # cycles
        start.record()
        kept = run()
        end.record()
        end.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
        del kept
        return Sample(start.elapsed_time(end) / 1e3, time.process_time() - cpu, float(peak))

    def open(self) -> Opened:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return Opened(float(torch.cuda.memory_allocated()), time.perf_counter(), time.process_time())

    def close(self, opened: Opened) -> Sample:
        torch.cuda.synchronize()
        seconds, cpu = time.perf_counter() - opened.wall, time.process_time() - opened.cpu
        return Sample(seconds, cpu, torch.cuda.max_memory_allocated() - opened.memory)

    def flush(self) -> None:
        torch.empty(self.cache_bytes, dtype=torch.uint8, device=self.torch).fill_(1)

    def finish(self) -> None:
        torch.cuda.synchronize()

    def release(self) -> None:
        torch.cuda.empty_cache()

    def hardware(self) -> dict[str, Any]:
        properties = torch.cuda.get_device_properties(self.torch)
        return {
            "hardware": properties.name,
            "isa": f"sm_{properties.major}{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "cuda": torch.version.cuda,
            "load_average": os.getloadavg()[0],
        }


Device = Cpu | Cuda


def find_device(kind: str) -> Device:
    """kind: "cpu", "cuda", or "auto" for the GPU where there is one."""
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cuda" and not torch.cuda.is_available():
        raise SystemExit("bench: --device cuda, but torch sees no CUDA device; use --device cpu")
    return Cuda() if kind == "cuda" else Cpu()
