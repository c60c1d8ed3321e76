"""metrics.jsonl, the console and tensorboard: one dict of metrics per step, three places to read it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from univg_fast import distributed
from univg_fast.config import LogConfig
from univg_fast.train.console import Display, console, eval_progress, numbers

__all__ = ["MetricsLogger", "console", "eval_progress", "trim_metrics"]


class MetricsLogger:
    """Writes the metrics of one stage; a context manager. Every rank makes one, rank 0 writes.

    `first` is the number of steps already done: later entries of an earlier run leave
    metrics.jsonl, so that a resumed run ends with the file of an uninterrupted one.
    """

    def __init__(self, run_dir: Path, stage: str, total_steps: int, first: int, log: LogConfig) -> None:
        self.stage, self.every, self.total = stage, log.steps, total_steps
        self._display = Display(stage, total_steps, first)
        self._step_began = time.perf_counter()
        self._file, self._board = None, None
        if distributed.is_main():
            path = run_dir / "metrics.jsonl"
            trim_metrics(path, stage, first)
            self._file = path.open("a", encoding="utf-8")
            self._board = _tensorboard(run_dir / "tb" / stage, first) if log.tensorboard else None

    def __enter__(self) -> MetricsLogger:
        self._display.__enter__()
        self._step_began = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        self._display.__exit__(*error)
        for sink in filter(None, (self._file, self._board)):
            sink.close()

    def log(self, step: int, metrics: Mapping[str, float], seconds: Mapping[str, float] | None = None) -> None:
        """Record the metrics of step number `step` (from 1). The time since the last call is the step's.

        `seconds`: of the step's phases, as `Phases.take` gives them; they become timing_s/NAME.
        """
        now = time.perf_counter()
        whole, self._step_began = now - self._step_began, now
        row: dict[str, Any] = {"stage": self.stage, "step": step, "time": time.time()} | dict(metrics)
        tokens = metrics.get("group_tokens", metrics.get("packed_tokens"))  # of all ranks
        if tokens is not None:
            row["tokens_per_second"] = tokens / whole
        if torch.cuda.is_available():
            row["memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
        row |= {f"timing_s/{name}": value for name, value in (seconds or {}).items()}
        row["timing_s/step"] = whole
        if self._file:
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
        if self._board:
            for key, value in row.items():
                if key not in ("stage", "step", "time"):
                    self._board.add_scalar(key, value, step)
        if step % self.every == 0 or step == self.total:
            self._display.update(step, numbers(row))


def trim_metrics(path: Path, stage: str, last: int) -> None:
    """Drop from a metrics file this stage's entries after step `last`, and a line that a kill cut in half."""
    if not path.is_file():
        return
    text = path.read_text(encoding="utf-8")
    kept = "".join(line for line in text.splitlines(keepends=True) if _keeps(line, stage, last))
    if kept != text:
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text(kept, encoding="utf-8")
        os.replace(temporary, path)


def _keeps(line: str, stage: str, last: int) -> bool:
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return False
    return line.endswith("\n") and (row["stage"] != stage or row["step"] <= last)


def _tensorboard(folder: Path, first: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError(f"log.tensorboard: expected the package tensorboard: {error}; install it") from error
    return SummaryWriter(str(folder), purge_step=first + 1)
