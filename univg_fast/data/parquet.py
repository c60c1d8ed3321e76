"""Parquet files with images inside (verl, EasyR1): unpacked once into a folder of image files and JSONL rows.

A cell {"bytes", "path"} becomes the path of a file that holds the bytes; its name holds the cell's path, so that
`write_parquet` restores both. A column whose values a table would change is JSON text, and its field says so.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote, unquote

from .formats.raw import brief

MAGIC = b"PAR1"
BATCH = 64  # rows held at once
MAX_NAME = 180  # of a file; a longer path of a cell is not kept
NAMELESS = "_"
PICTURES = ("images", "image")  # keys whose paths become images
JSON = {b"univg_fast": b"json"}  # metadata of a column of JSON texts


class Unwritable(ValueError):
    """Rows that make no table."""


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
            file = pyarrow.parquet.ParquetFile(path)
            texts = [field.name for field in file.schema_arrow if (field.metadata or {}).items() >= JSON.items()]
            for batch in file.iter_batches(batch_size=BATCH):
                for row in batch.to_pylist():
                    row |= {name: json.loads(row[name]) for name in texts if row[name] is not None}
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


def write_parquet(path: Path, rows: Sequence[dict[str, Any]], root: Path, further: set[str] | None = None) -> None:
    """Write rows, the images under "images" or "image" as {"bytes", "path"}; `root`: where their relative paths start.

    A column that a table would change (text here and a mapping there) becomes JSON text, which `unpack` reads back: any
    of them, or those named by `further`, where trainers read the others. Unwritable for another one, or an image that
    cannot be read; OSError for the file.
    """
    pyarrow = _pyarrow()
    columns, fields = [], []
    for name in dict.fromkeys(key for row in rows for key in row):
        values, metadata = [row.get(name) for row in rows], None
        if name in PICTURES:
            column = pyarrow.array([_pictures(value, root) for value in values])
        elif (column := _column(values)) is None:
            if further is not None and name not in further:
                _refuse(name, values)
            column = pyarrow.array([None if value is None else json.dumps(value) for value in values])
            metadata = JSON
        columns.append(column)
        fields.append(pyarrow.field(name, column.type, metadata=metadata))
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays(columns, schema=pyarrow.schema(fields)), path)


def _column(values: list[Any]) -> Any:
    """The values as a column that holds just them; None where there is none, as for mappings of different keys."""
    pyarrow = _pyarrow()
    try:
        column = pyarrow.array(values)
    except (pyarrow.ArrowException, OverflowError, UnicodeError):
        return None
    unknown_to_parquet = "struct<>" in str(column.type)
    return column if column.to_pylist() == values and not unknown_to_parquet else None


def _refuse(name: str, values: list[Any]) -> NoReturn:
    told = [(number, value) for number, value in enumerate(values, 1) if value is not None]
    number, other = next(((n, v) for n, v in told if _column([told[0][1], v]) is None), told[0])
    kinds = f"{brief(told[0][1])} in row {told[0][0]} and {brief(other)} in row {number}"
    raise Unwritable(f"parquet holds one kind of value under {name}, and there is {kinds}; write .jsonl")


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


def _pictures(value: Any, root: Path) -> Any:
    """The images' files in the place of their paths."""
    if value is None or isinstance(value, str):
        return None if value is None else _cell(value, root)
    return [_cell(image, root) for image in value]


def _cell(image: str, root: Path) -> dict[str, Any]:
    path = root / image
    name = unquote(path.name) if path.parent.parent.name == "images" else image
    try:
        return {"bytes": path.read_bytes(), "path": None if name == NAMELESS else name}
    except OSError as error:
        raise Unwritable(f"the image {path}: {error.strerror}") from None


def _plain(value: Any) -> Any:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)
