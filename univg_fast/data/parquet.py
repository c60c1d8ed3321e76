"""Parquet files with images inside (verl, EasyR1): unpacked once into a folder of image files and JSONL rows.

A cell {"bytes", "path"} becomes the path of a file that holds the bytes; its name holds the cell's path, so that
`write_parquet` restores both.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

MAGIC = b"PAR1"
BATCH = 64  # rows held at once
MAX_NAME = 180  # of a file; a longer path of a cell is not kept
NAMELESS = "_"


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise ValueError("data: parquet files need the package pyarrow: pip install pyarrow") from None
    return pyarrow


def unpack(path: Path, cache_dir: str | None = None) -> Path:
    """rows.jsonl of a parquet file, made if it is not there yet, in `cache_dir` (default: ~/.cache/univg_fast).

    Several processes may do it at once: the folder appears whole. ValueError for a damaged file, or without pyarrow.
    """
    pyarrow = _pyarrow()
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    state = path.stat()
    stamp = f"{path.absolute()}\n{state.st_size}\n{state.st_mtime_ns}"
    folder = Path(cache_dir or os.path.join(home, "univg_fast")) / hashlib.sha256(stamp.encode()).hexdigest()[:24]
    if (folder / "rows.jsonl").is_file():
        return folder / "rows.jsonl"
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=folder.parent))
    try:
        with (made / "rows.jsonl").open("w", encoding="utf-8") as out:
            for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=BATCH):
                for row in batch.to_pylist():
                    out.write(json.dumps(_unpacked(row, made, folder), default=_plain) + "\n")
        try:
            made.rename(folder)
        except OSError:
            if not (folder / "rows.jsonl").is_file():  # else another process was first
                raise
    except pyarrow.ArrowException as error:
        raise ValueError(f"data: {path}: not readable as parquet: {error}") from None
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return folder / "rows.jsonl"


def write_parquet(path: Path, rows: Iterable[dict[str, Any]], root: Path) -> None:
    """Write rows, the images under "images" or "image" as {"bytes", "path"}; `root`: where their relative paths start.

    All rows are held at once. ValueError for an image that cannot be read, or rows that make no table.
    """
    pyarrow = _pyarrow()
    try:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([_packed(row, root) for row in rows]), path)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"data: {path} cannot be written: {error}") from None


def _unpacked(value: Any, made: Path, folder: Path) -> Any:
    """A value with each picture in it written into `made`, and named as it will lie in `folder`."""
    if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
        name = quote(str(value.get("path") or NAMELESS), safe="")
        inside = Path("images", hashlib.sha256(value["bytes"]).hexdigest()[:24], name[-MAX_NAME:])
        (made / inside).parent.mkdir(parents=True, exist_ok=True)
        (made / inside).write_bytes(value["bytes"])
        return str((folder / inside).absolute())
    if isinstance(value, dict) and set(value) == {"bytes", "path"} and isinstance(value["path"], str):
        return value["path"]
    if isinstance(value, dict):
        return {key: _unpacked(item, made, folder) for key, item in value.items()}
    return [_unpacked(item, made, folder) for item in value] if isinstance(value, list) else value


def _packed(row: dict[str, Any], root: Path) -> dict[str, Any]:
    """The row with its images' files in the place of their paths."""
    held = {key: row[key] for key in ("images", "image") if key in row}
    return row | {
        key: _cell(value, root) if isinstance(value, str) else [_cell(image, root) for image in value]
        for key, value in held.items()
    }


def _cell(image: str, root: Path) -> dict[str, Any]:
    path = root / image
    name = unquote(path.name) if path.parent.parent.name == "images" else image
    return {"bytes": path.read_bytes(), "path": None if name == NAMELESS else name}


def _plain(value: Any) -> Any:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)
