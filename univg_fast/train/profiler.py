"""A window of torch's profiler over whole steps, with the phases by name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from univg_fast import distributed
from univg_fast.config.schema import ProfileConfig
from univg_fast.files import could_not_write
from univg_fast.train.phases import Phases


@contextmanager
def profiler_window(run_dir: Path, stage: str, config: ProfileConfig, phases: Phases) -> Iterator[None]:
    """Within it, steps `start` to `start + steps - 1` of rank 0 go into prof/STAGE_rank0.json (Chrome's format).

    It opens as the first phase of its first step begins and closes as the first one behind its last step does; a run
    that is resumed behind `start` has a window of what is left of it.
    """
    if not config.start or not distributed.is_main():
        yield
        return
    path = run_dir / "prof" / f"{stage}_rank{distributed.rank()}.json"
    opened: list[profile] = []
    written: list[Path] = []

    def watch(name: str, step: int) -> None:
        inside = config.start <= step < config.start + config.steps
        if inside and not opened:
            cuda = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
            opened.append(profile(activities=[ProfilerActivity.CPU, *cuda]))
            opened[0].start()
        elif opened and not inside and not written:
            close()

    def close() -> None:
        opened[0].stop()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            opened[0].export_chrome_trace(str(path))
        except OSError as error:
            could_not_write(str(path), error)
        written.append(path)

    phases.watchers.append(watch)
    try:
        yield
    finally:
        phases.watchers.remove(watch)
        if opened and not written:
            close()
