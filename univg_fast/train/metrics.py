"""The metrics of a stage: what a step reports, its rates, memory and timings, one dict for all sinks."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from univg_fast import distributed
from univg_fast.config import LogConfig
from univg_fast.files import append_rows, could_not_write, write_whole
from univg_fast.train.console import Display, console, eval_progress, numbers
from univg_fast.train.sinks import Sink, open_sinks
from univg_fast.train.throughput import Throughput, memory, rates

__all__ = ["MetricsLogger", "console", "eval_progress", "trim_metrics"]


class MetricsLogger:
    """Writes the metrics of one stage; a context manager. Every rank makes one, rank 0 writes. docs/metrics.md.

    `first` is the number of steps already done: later entries of an earlier run leave metrics.jsonl, so that a
    resumed run ends with the file of an uninterrupted one. `throughput`: of the model, for FLOPs; without it rates
    only. `settings`: the run's configuration, for trackers to show.
    """

    def __init__(
        self,
        run_dir: Path,
        stage: str,
        total_steps: int,
        first: int,
        log: LogConfig,
        throughput: Throughput | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.stage, self.every, self.total = stage, log.steps, total_steps
        self._rates = rates if throughput is None else throughput.figures
        self._display = Display(stage, total_steps, first)
        self._num_tokens = 0.0
        self._sinks: list[Sink] = []
        if distributed.is_main():
            self._num_tokens = trim_metrics(run_dir / "metrics.jsonl", stage, first)
            if first:
                event = {"time": time.time(), "event": "resumed", "stage": stage, "step": first}
                append_rows(run_dir / "events.jsonl", [event])
            self._sinks = open_sinks(run_dir, stage, first, log, settings or {})
        self.start()

    def __enter__(self) -> MetricsLogger:
        self._display.__enter__()
        self.start()
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        self._display.__exit__(kind, *error)
        for sink in self._sinks:
            sink.close(kind is not None)

    def start(self) -> None:
        """The first step begins now: what came before belongs to no step."""
        self._step_began = time.perf_counter()

    def log(self, step: int, metrics: Mapping[str, float], seconds: Mapping[str, float] | None = None) -> None:
        """Record the metrics of step number `step` (from 1). The time since the last call is the step's.

        `seconds`: of the step's phases, as `Phases.take` gives them; they become timing_s/NAME, and what is in no phase
        timing_s/other, so that they add up to timing_s/step.
        """
        now = time.perf_counter()
        whole, self._step_began = now - self._step_began, now
        if not distributed.is_main():
            return
        seconds = seconds or {}
        row: dict[str, Any] = {"stage": self.stage, "step": step, "time": time.time()} | dict(metrics)
        if "dense_tokens" in metrics:
            self._num_tokens += metrics["dense_tokens"]
            row["num_tokens"] = self._num_tokens
        row |= {f"timing_s/{name}": value for name, value in seconds.items()}
        row["timing_s/other"] = max(0.0, whole - sum(seconds.values()))
        row["timing_s/step"] = whole
        row |= self._rates(row, whole) | memory()
        for sink in self._sinks:
            sink.log(row)
        if step % self.every == 0 or step == self.total:
            self._display.update(step, numbers(row))


def trim_metrics(path: Path, stage: str, last: int) -> float:
    """Drop from a metrics file this stage's entries after step `last`, and a line that a kill cut in half.

    Returns the num_tokens of the stage's last entry that is kept.
    """
    if not path.is_file():
        return 0.0
    text = path.read_text(encoding="utf-8")
    lines = [line for line in text.splitlines(keepends=True) if _keeps(line, stage, last)]
    kept = "".join(lines)
    if kept != text:
        try:
            write_whole(path, kept)
        except OSError as error:
            could_not_write(str(path), error)
    mine = [row for row in map(json.loads, reversed(lines)) if row["stage"] == stage]
    return float(mine[0].get("num_tokens", 0.0)) if mine else 0.0


def _keeps(line: str, stage: str, last: int) -> bool:
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return False
    return line.endswith("\n") and (row["stage"] != stage or row["step"] <= last)
