"""Where the metrics of a step go: one dict, written as it is to each place that the log section names."""

from __future__ import annotations

import importlib
import json
import math
import secrets
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from univg_fast.config import LogConfig
from univg_fast.files import could_not_write, read_json, write_whole

Row = Mapping[str, Any]  # a line of metrics.jsonl: stage, step, time, and the metrics
NOT_METRICS = ("stage", "step", "time")
MODULES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb", "trackio": "trackio"}


class Sink(NamedTuple):
    """`close` is told whether the stage failed."""

    log: Callable[[Row], None]
    close: Callable[[bool], None]


def check(log: LogConfig) -> None:
    """Before anything runs: ValueError where a sink was asked for that cannot work here."""
    found = {}
    for name, module in MODULES.items():
        if getattr(log, name):
            try:
                found[name] = importlib.import_module(module)
            except ImportError as error:
                raise ValueError(
                    f"log.{name}: expected the package {name}, got: {error}. Install it (pip install {name}), or leave "
                    f"log.{name} out: metrics.jsonl holds the same numbers"
                ) from error
    if "wandb" in found:
        _check_login(found["wandb"])


def open_sinks(run_dir: Path, stage: str, first: int, log: LogConfig, settings: Row) -> list[Sink]:
    """The sinks of one stage of which `first` steps are done; for rank 0. `settings`: the run's, for the trackers.

    No error of theirs ends the run.
    """
    path, wandb, trackio = run_dir / "metrics.jsonl", log.wandb, log.trackio
    sinks = [guarded(str(path), lambda: _jsonl(path))]
    if log.tensorboard:
        sinks.append(guarded("log.tensorboard", lambda: _tensorboard(run_dir / "tb" / stage, first)))
    if wandb:
        sinks.append(guarded("log.wandb", lambda: _wandb(run_dir, wandb, stage, settings)))
    if trackio:
        sinks.append(guarded("log.trackio", lambda: _trackio(run_dir, trackio, settings)))
    return sinks


def guarded(name: str, make: Callable[[], Sink]) -> Sink:
    """What `make` opens, but errors are only told: the first one when it comes, how many there were at the end."""
    sinks: list[Sink] = []  # it, if it could be opened
    errors = 0

    def attempt(act: Callable[..., None], *arguments: Any) -> None:
        nonlocal errors
        try:
            act(*arguments)
        except Exception as error:  # of a disk, a network, or whatever a tracker's package raises
            errors += 1
            if errors == 1:
                could_not_write(name, error)

    def log(row: Row) -> None:
        for sink in sinks:
            attempt(sink.log, row)

    def close(failed: bool) -> None:
        for sink in sinks:
            attempt(sink.close, failed)
        if errors > 1:
            print(f"warning: {name} could not be written {errors} times", file=sys.stderr, flush=True)

    attempt(lambda: sinks.append(make()))
    return Sink(log, close)


def run_id(run_dir: Path) -> str:
    """What the trackers know this run folder by: made once, so that a resumed run goes on in the same tracker's run."""
    path = run_dir / "track.json"
    told = read_json(path)
    if told is None:
        told = {"id": secrets.token_hex(4)}
        write_whole(path, json.dumps(told) + "\n")
    return str(told["id"])


def _jsonl(path: Path) -> Sink:
    file = path.open("a", encoding="utf-8")

    def log(row: Row) -> None:
        strict = {key: None if isinstance(x, float) and not math.isfinite(x) else x for key, x in row.items()}
        file.write(json.dumps(strict, allow_nan=False) + "\n")
        file.flush()  # where that fails, the line goes out with a later one

    return Sink(log, lambda failed: file.close())


def _tensorboard(folder: Path, first: int) -> Sink:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder), purge_step=first + 1)

    def log(row: Row) -> None:
        for key, value in row.items():
            if key not in NOT_METRICS:
                writer.add_scalar(key, value, row["step"])

    return Sink(log, lambda failed: writer.close())


def _wandb(run_dir: Path, project: str, stage: str, settings: Row) -> Sink:
    import wandb

    name, ours = run_dir.resolve().name, run_id(run_dir)
    quiet = wandb.Settings(console="off")  # the console is the run's own, and may be a live bar
    run = wandb.init(
        project=project, name=name, id=ours, resume="allow", dir=str(run_dir), config=dict(settings), settings=quiet
    )
    run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")

    def close(failed: bool) -> None:
        run.finish(exit_code=int(failed))
        wandb.teardown()  # its own process writes the data: wait until it has

    return Sink(lambda row: run.log(_prefixed(row)), close)


def _trackio(run_dir: Path, project: str, settings: Row) -> Sink:
    import trackio

    name = f"{run_dir.resolve().name}-{run_id(run_dir)}"
    run = trackio.init(
        project=project,
        name=name,
        resume="allow",
        config=dict(settings),
        embed=False,
        auto_log_gpu=False,
        auto_log_cpu=False,
    )
    return Sink(lambda row: run.log(_prefixed(row), step=row["step"]), lambda failed: trackio.finish())


def _prefixed(row: Row) -> dict[str, float]:
    """Both stages of a run in one tracker's run: stage/metric, over stage/step."""
    return {f"{row['stage']}/{key}": value for key, value in row.items() if key not in ("stage", "time")}


def _check_login(wandb: Any) -> None:
    """ValueError where wandb would send its data away and has no account to send it to."""
    if wandb.setup().settings.mode != "online":
        return
    remedy = "run `wandb login`, set WANDB_API_KEY, or set WANDB_MODE=offline, which needs no account and no network"
    try:
        known = wandb.login(prompt=False)
    except wandb.errors.Error as error:
        raise ValueError(f"log.wandb: expected a login that wandb takes, got: {error}; {remedy}") from error
    if not known:
        raise ValueError(f"log.wandb: expected an account, got none; {remedy}")
