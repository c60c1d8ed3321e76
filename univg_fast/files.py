"""Small files that outlive a kill or a full disk, and a lock that ends with its process."""

from __future__ import annotations

import fcntl
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any


def write_whole(path: Path, text: str) -> None:
    """The file is there as it was, or with all of `text`; never cut. Its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f".{path.name}.tmp")
    with half.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(half, path)


def read_json(path: Path) -> Any:
    """The value in a file; None where there is none that can be read: no file, an empty or a cut one."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def append_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A line of JSON for each, in one piece, as others may write there; where that fails it is said, and gone on."""
    try:
        if rows:
            with path.open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(row) + "\n" for row in rows))
    except OSError as error:
        could_not_write(str(path), error)


def could_not_write(what: str, error: Exception) -> None:
    """On stderr: a log that cannot be written does not end a run."""
    told = str(error) or type(error).__name__
    print(f"warning: {what} could not be written, the run goes on: {told}", file=sys.stderr, flush=True)


def lock(file: IO[Any]) -> bool:
    """Hold the open file for this process, until it closes it or ends, however; False where another process does."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
