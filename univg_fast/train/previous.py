"""What an earlier run left in run.dir: gone on with, moved aside, or refused, but never mixed with another one."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import yaml

from univg_fast import distributed
from univg_fast.config import Config, to_yaml
from univg_fast.config.changes import FREE, TOLD, flat, is_one_of
from univg_fast.files import append_rows, lock

LEFT = (
    *("ckpt", "hf", "eval", "rollouts", "sheets", "tb", "prof", "crash", "logs"),
    *("metrics.jsonl", "events.jsonl", "track.json", "report.html", "bad_records.jsonl", "over_budget.jsonl"),
)
ABOUT = ("data_report.json", "env.json", "config.yaml")  # of what is left; the last one goes when all else has gone


@contextmanager
def taken(run_dir: Path) -> Iterator[None]:
    """run.dir for this run alone: RankError where another one that still lives writes into it. Collective."""
    held = distributed.all_or_none("run.dir", lambda: take(run_dir) if distributed.is_main() else None)
    try:
        yield
    finally:
        if held is not None:
            held.close()


def take(run_dir: Path) -> IO[str]:
    """The open run.dir/.lock; ValueError where another process holds it. It ends with this process, however."""
    run_dir.mkdir(parents=True, exist_ok=True)
    file = (run_dir / ".lock").open("a+")
    try:
        mine = lock(file)
    except OSError as error:  # a file system without locks
        distributed.warn(f"{file.name} cannot be locked ({error}): see that no other run writes into {run_dir}")
        return file
    if not mine:
        file.seek(0)
        raise ValueError(
            f"{run_dir}: another process is training into this folder ({file.read().strip() or 'unknown'}). Wait for "
            "it (where its launcher was killed, it saves and leaves after its step), end it, or give another --run.dir"
        )
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file


def settle(config: Config, run_dir: Path) -> list[str]:
    """Make run.dir ready; for one rank to call. Returns what differs from the earlier run and is gone on with.

    run.resume=never moves what is there into run.dir/old_N. Otherwise ValueError names the keys that the earlier run
    had otherwise where its models and checkpoints are then not this configuration's (config/changes.py).
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    there = [run_dir / name for name in LEFT if (run_dir / name).exists()]
    if config.run.resume == "never" and there:
        there += [run_dir / name for name in ABOUT if (run_dir / name).exists()]
        number = next(n for n in range(1, 10_000) if not (run_dir / f"old_{n}").exists())
        (run_dir / f"old_{number}").mkdir()
        for path in there:
            path.rename(run_dir / f"old_{number}" / path.name)
        return []
    before = run_dir / "config.yaml"
    if not before.is_file() or not any((run_dir / name).is_dir() for name in ("ckpt", "hf", "eval")):
        return []
    was, now = flat(read_config(before)), flat(yaml.safe_load(to_yaml(config)))
    changed = [k for k in sorted(was | now) if was.get(k) != now.get(k) and not is_one_of(k, FREE)]
    done = tuple(stage for stage in config.stages if (run_dir / "hf" / stage / "config.json").is_file())
    refused = [k for k in changed if not is_one_of(k, TOLD) or is_one_of(k, done)]
    told = {key: f"{key} was {was.get(key)!r}, is {now.get(key)!r}" for key in changed}
    stages = [was.get("stages") or now["stages"], now["stages"]]
    if any(one != other for one, other in zip(*stages, strict=False)):
        refused.append("stages")
        order = "as each begins from the one before it, only the last ones may come or go"
        told["stages"] = "stages was {}, is {}: {}".format(*stages, order)
    if refused:
        raise ValueError(
            f"{run_dir} holds a run with another configuration ({'; '.join(told[key] for key in refused)}). Give this "
            "one another --run.dir, or --run.resume=never to move the old one aside"
        )
    return list(told.values())


def read_config(path: Path) -> dict[str, Any]:
    """The mapping in a run's config.yaml. ValueError where it is none."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        values = error
    if not isinstance(values, dict):
        raise ValueError(
            f"{path}: expected the configuration of the run in this folder, got {str(values)[:200]!r} (cut while it "
            "was written?). Delete the file if this command is that run's own: it is written anew, and the run goes on"
        )
    return values


def note(changes: list[str], run_dir: Path) -> None:
    """Say what this start of a run has otherwise, here and in events.jsonl."""
    if not changes:
        return
    distributed.warn(f"from here on {'; '.join(changes)}: the numbers are not those of a run with one configuration")
    append_rows(run_dir / "events.jsonl", [{"time": time.time(), "event": "changed", "keys": changes}])
