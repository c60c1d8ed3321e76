"""Checkpoints that are whole or not there.

`ckpt/{stage}_{step:06d}/` holds DeepSpeed's files, a file per rank with random states and the caller's state,
and a manifest with size and SHA-256 of each. All is written into a hidden temporary folder and synced to
disk; the manifest comes last, then one rename. A kill at any moment leaves the older checkpoints, and no half
one that counts. All ranks must see the same folder.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import file_digest
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch

from univg_fast import distributed
from univg_fast.train.random_state import random_state, set_random_state

MANIFEST = "manifest.json"
_TAG = "engine"  # DeepSpeed's own files lie below this name


def save(
    root: Path, stage: str, step: int, engine: Any, state: dict[str, Any], config_hash: str, total_limit: int
) -> Path:
    """Write `root/{stage}_{step:06d}` and remove the stage's oldest ones beyond `total_limit`. Collective.

    `state` is this rank's own (plain data) and comes back from `load`. If a rank fails, nothing new appears,
    the temporary folder is removed, and every rank raises RankError with culprit and cause.
    """
    target = root / f"{stage}_{step:06d}"
    temporary = root / distributed.broadcast_object(f".tmp-{target.name}-{uuid4().hex[:8]}")

    def prepare() -> None:
        if distributed.is_main():
            root.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(root)
            _require_space(root, stage)
            (temporary / _TAG).mkdir(parents=True)

    def write_mine() -> None:
        if failures:
            raise failures[0]
        torch.save({"random": random_state(), "state": state}, temporary / _rank_file())

    def publish() -> None:
        if distributed.is_main():
            manifest = _manifest(stage, step, engine, config_hash) | {"files": dict(sorted(files))}
            _write_synced(temporary / MANIFEST, json.dumps(manifest, indent=1))
            _sync(temporary)
            if target.exists():  # an earlier, broken or repeated one of this very step
                shutil.rmtree(target)
            os.rename(temporary, target)
            _sync(root)
            _prune(root, stage, total_limit)

    try:
        distributed.all_or_none(f"making {temporary}", prepare)
        with _writing_failures(engine) as failures:
            engine.save_checkpoint(str(temporary), tag=_TAG, save_latest=False)
        distributed.all_or_none(f"writing checkpoint {target}", write_mine)
        mine = distributed.all_or_none(f"syncing checkpoint {target}", lambda: _sync_share(temporary))
        files = [item for part in distributed.gather_objects(mine) for item in part]
        distributed.all_or_none(f"publishing checkpoint {target}", publish)
    except distributed.RankError:
        if distributed.is_main():
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    return target


def latest_complete(root: Path, stage: str) -> Path | None:
    """The stage's newest checkpoint with every file of its manifest unharmed, or None. Collective.

    Says on stderr which newer ones it passes over and why.
    """
    names = sorted((p.name for p in root.glob(f"{stage}_*") if p.is_dir()), reverse=True)
    for name in distributed.broadcast_object(names):
        problem = defect(root / name)
        if problem is None:
            return root / name
        if distributed.is_main():
            print(
                f"warning: checkpoint {root / name} is not complete, passing it over: {problem}",
                file=sys.stderr,
            )
    return None


def find(root: Path, stage: str, resume: str) -> Path | None:
    """What `run.resume` means: "never", "auto" (`latest_complete`), or a checkpoint's folder. Collective.

    A named folder of another stage gives None; one that is damaged or missing raises ValueError.
    """
    if resume in ("never", "auto"):
        return latest_complete(root, stage) if resume == "auto" else None
    folder = Path(resume)
    problem = defect(folder)
    if problem is not None:
        raise ValueError(f"run.resume: expected auto, never or a complete checkpoint, got {resume}: {problem}")
    return folder if _read_manifest(folder)["stage"] == stage else None


def defect(folder: Path) -> str | None:
    """What is wrong with a checkpoint folder; None if each file is as the manifest says. Collective."""
    problem: str | None
    try:
        files = _read_manifest(folder)["files"]
    except (OSError, ValueError, KeyError) as error:
        problem = f"no readable {MANIFEST} ({type(error).__name__}: {error})"
    else:
        problem = _first_difference(folder, files)
    return next((p for p in distributed.gather_objects(problem) if p), None)


def load(folder: Path, engine: Any, config_hash: str) -> dict[str, Any]:
    """Put engine and random states where the checkpoint has them; returns this rank's `state`. Collective.

    ValueError if another number of ranks or another ZeRO stage wrote it. Other versions or another
    configuration get a warning: the run goes on, but not bit by bit as it would have.
    """
    manifest, now = _read_manifest(folder), _manifest("", 0, engine, config_hash)
    for key, knob in (("world_size", "the number of processes"), ("zero_stage", "deepspeed.zero_stage")):
        if manifest[key] != now[key]:
            raise ValueError(
                f"{folder} was written with {key} {manifest[key]}, this run has {now[key]}: "
                f"change {knob} back, or start afresh with --run.resume=never"
            )
    for key in ("config_hash", "versions"):
        if manifest[key] != now[key] and distributed.is_main():
            print(f"warning: {folder} has other {key}: {manifest[key]}, now {now[key]}", file=sys.stderr)
    loaded, _ = engine.load_checkpoint(str(folder), tag=_TAG)
    if loaded is None:
        raise ValueError(f"{folder}: DeepSpeed found nothing to load under {folder / _TAG}")
    mine = torch.load(folder / _rank_file(), weights_only=False)
    set_random_state(mine["random"])
    return mine["state"]


@contextmanager
def _writing_failures(engine: Any) -> Iterator[list[Exception]]:
    """Collect what DeepSpeed's writer raises, for later: raised, it would leave the others at a barrier."""
    failures: list[Exception] = []
    writer, original = engine.checkpoint_engine, engine.checkpoint_engine.save

    def guarded(state_dict: Any, path: str) -> None:
        try:
            original(state_dict, path)
        except (OSError, RuntimeError) as error:
            failures.append(RuntimeError(f"{path}: {error} (disk full, or over quota?)"))

    writer.save = guarded
    try:
        yield failures
    finally:
        del writer.save  # the class's own again


def _manifest(stage: str, step: int, engine: Any, config_hash: str) -> dict[str, Any]:
    packages = ("torch", "deepspeed", "transformers")
    return {
        "stage": stage,
        "step": step,
        "world_size": distributed.world_size(),
        "zero_stage": engine.zero_optimization_stage(),
        "config_hash": config_hash,
        "versions": {name: version(name) for name in packages} | {"python": platform.python_version()},
        "time": time.time(),
    }


def _read_manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))


def _sync_share(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """Sync this rank's part of the folder's files to disk; their relative names, sizes and hashes."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    mine = files[distributed.rank() :: distributed.world_size()]
    for path in [*mine, *{p.parent for p in mine}]:
        _sync(path)
    return [(path.relative_to(folder).as_posix(), _size_and_hash(path)) for path in mine]


def _size_and_hash(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": file_digest(file, "sha256").hexdigest()}


def _first_difference(folder: Path, files: dict[str, dict[str, Any]]) -> str | None:
    for name, expected in sorted(files.items())[distributed.rank() :: distributed.world_size()]:
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["size"]:
            return f"{name} has {path.stat().st_size} bytes, the manifest says {expected['size']}"
        if _size_and_hash(path)["sha256"] != expected["sha256"]:
            return f"{name} is not what was written: another SHA-256"
    return None


def _remove_leftovers(root: Path) -> None:
    for path in root.glob(".tmp-*"):
        shutil.rmtree(path)


def _require_space(root: Path, stage: str) -> None:
    """Fail before writing where a folder as large as the stage's last checkpoint would not fit."""
    last = sum(p.stat().st_size for older in _with_manifest(root, stage)[-1:] for p in older.rglob("*"))
    free = shutil.disk_usage(root).free
    if free < 1.1 * last:
        raise OSError(f"{free / 1e9:.2f} GB free in {root}, the last checkpoint took {last / 1e9:.2f} GB")


def _prune(root: Path, stage: str, total_limit: int) -> None:
    for path in _with_manifest(root, stage)[:-total_limit]:
        os.rename(path, root / f".tmp-{path.name}")  # first out of sight: half removed it must not count
        shutil.rmtree(root / f".tmp-{path.name}")


def _with_manifest(root: Path, stage: str) -> list[Path]:
    return sorted(p for p in root.glob(f"{stage}_*") if (p / MANIFEST).is_file())


def _write_synced(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    _sync(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _rank_file() -> str:
    return f"rank_{distributed.rank():04d}.pt"
