"""What a checkpoint's folder must hold: `manifest.json` names its maker, and each file with its size and SHA-256."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import file_digest
from importlib.metadata import version
from pathlib import Path
from typing import Any

from univg_fast import distributed

MANIFEST = "manifest.json"
ENGINE = "engine"  # DeepSpeed's own files lie below this name
PACKAGES = ("torch", "deepspeed", "transformers")
HASHERS = 4  # files at once, while they are brought to the disk
PIECE_BYTES = 2**28  # of a file that is brought to the disk
_WRITE_AND_WAIT = 7  # sync_file_range's flags: wait before, write, wait after


def describe(stage: str, step: int, zero_stage: int, config_hash: str) -> dict[str, Any]:
    """A manifest without its files: what is being saved, by whom."""
    return {
        "stage": stage,
        "step": step,
        "world_size": distributed.world_size(),
        "zero_stage": zero_stage,
        "config_hash": config_hash,
        "versions": {name: version(name) for name in PACKAGES} | {"python": platform.python_version()},
        "time": time.time(),
    }


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))


def write(folder: Path, manifest: dict[str, Any]) -> None:
    """The last file of a folder; on the disk when this returns."""
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    sync([folder / MANIFEST, folder])


def names(folder: Path) -> list[str]:
    """Of the files below the folder, as far as this machine's view of a shared disk is up to date."""
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def sync_share(
    folder: Path,
    files: Iterable[str],
    beat: Callable[[], None] = lambda: None,
    written: Sequence[Collection[str]] = (),
) -> dict[str, dict[str, Any]]:
    """Bring this rank's part of the folder's files to the disk; size and hash by relative name.

    `files`: the names that any rank sees; `written`: of each rank, those that it wrote. Both are the same on all ranks.
    A rank's part is what it wrote: no other machine has it in memory, or can bring it to the disk. The rest is dealt
    out. OSError where one is missing here.
    """
    rest = set(files).difference(*written)
    mine = [folder / name for name in (*(written[distributed.rank()] if written else ()), *_share(sorted(rest)))]
    with ThreadPoolExecutor(HASHERS, thread_name_prefix="hash") as pool:  # what is on its way is still in memory
        entries = [pool.submit(_size_and_hash, path) for path in mine]
        sync([*mine, *{p.parent for p in mine}], beat)
        return {path.relative_to(folder).as_posix(): made.result() for path, made in zip(mine, entries, strict=True)}


def defect(folder: Path) -> str | None:
    """What is wrong with a checkpoint's folder; None if each file is as the manifest says. Collective."""
    problem: str | None
    try:
        manifest = read(folder)
        problem = _first_difference(folder, manifest["files"])
        manifest["stage"], manifest["step"], manifest["world_size"], manifest["zero_stage"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"no readable {MANIFEST} ({type(error).__name__}: {error})"
    return next((p for p in distributed.gather_objects(problem) if p), None)


def is_whole(folder: Path) -> bool:
    """Whether every file of the manifest is there in its size; as `defect`, but by this rank alone, and unread."""
    try:
        files = read(folder)["files"].items()
        return all((folder / name).stat().st_size == entry["size"] for name, entry in files)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def of_stage(root: Path, stage: str) -> list[Path]:
    """Folders with the names of the stage's checkpoints, oldest first; they may be damaged."""
    found = [p for p in root.glob(f"{stage}_*") if p.is_dir() and p.name.removeprefix(f"{stage}_").isdigit()]
    return sorted(found, key=step_of)


def step_of(folder: Path) -> int:
    return int(folder.name.rpartition("_")[2])


def rank_file(rank: int) -> str:
    """The rank's own: random states and the stage's state."""
    return f"rank_{rank:04d}.pt"


def num_bytes(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def sync(paths: Iterable[Path], beat: Callable[[], None] = lambda: None) -> None:
    """Bring files and folders to the disk. `beat` is called after each piece: one fsync alone may take many minutes."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            _write_out(handle, beat)
            os.fsync(handle)
            beat()
        finally:
            os.close(handle)


def _write_out(handle: int, beat: Callable[[], None]) -> None:
    """What of the file is only in memory, piece by piece, as far as the system can; an fsync must follow."""
    write = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if write is None:
        return
    for begin in range(0, os.fstat(handle).st_size, PIECE_BYTES):
        write(handle, ctypes.c_int64(begin), ctypes.c_int64(PIECE_BYTES), _WRITE_AND_WAIT)
        beat()


def _share(files: Sequence[Any]) -> Sequence[Any]:
    return files[distributed.rank() :: distributed.world_size()]


def _size_and_hash(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": file_digest(file, "sha256").hexdigest()}


def _first_difference(folder: Path, files: dict[str, dict[str, Any]]) -> str | None:
    for name, expected in _share(sorted(files.items())):
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["size"]:
            return f"{name} has {path.stat().st_size} bytes, the manifest says {expected['size']}"
        if _size_and_hash(path)["sha256"] != expected["sha256"]:
            return f"{name} is not what was written: another SHA-256"
    return None
