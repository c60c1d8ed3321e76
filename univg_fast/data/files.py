"""Entries of data.sft, data.grpo and data.eval: which files they mean, and how each is read.

An entry is a path or {path, weight, image_root, coordinates, answer_style, cot}. What a file is, its content says:
JSONL, a JSON list, parquet, or LLaMA-Factory's dataset_info.json, which names further files
(`dataset_info.json#name,name` takes some of them).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .entries import check_entry
from .jsonfile import MALFORMED
from .llama_factory import Columns, datasets_of
from .parquet import MAGIC, unpack

MAX_INFO_BYTES = 8 << 20  # a larger JSON object is no dataset_info.json


@dataclass(frozen=True)
class DataFile:
    """One file of rows. `name` is what messages call it; `path` holds the rows as JSON (parquet is unpacked there)."""

    name: str
    path: Path
    weight: float = 1.0  # passes over the file in one epoch
    image_root: Path | None = None
    coordinates: str | None = None
    answer_style: str | None = None
    cot: bool | None = None
    columns: Columns | None = None

    @property
    def root(self) -> Path:
        """Where relative image paths start, in full."""
        return (self.image_root if self.image_root is not None else Path(self.name).parent).absolute()


def data_files(
    entries: Iterable[Any], image_root: str | Path | None = None, cache_dir: str | None = None
) -> list[DataFile]:
    """The files of some entries. ValueError for an entry that is none, or a file that is missing."""
    return [file for entry in entries for file in _files(check_entry(entry), image_root, cache_dir)]


def _files(entry: Mapping[str, Any], image_root: str | Path | None, cache_dir: str | None) -> Iterator[DataFile]:
    name, mark, chosen = str(entry["path"]).partition("#")
    if mark and not Path(name).is_file() or Path(str(entry["path"])).is_file():
        name, chosen = str(entry["path"]), ""
    if not Path(name).is_file():
        raise ValueError(f"data: expected a JSON, JSONL or parquet file, got {name}: no such file")
    root = entry.get("image_root", image_root)
    common: dict[str, Any] = {
        "weight": float(entry.get("weight", 1)),
        "image_root": None if root is None else Path(root),
        "coordinates": entry.get("coordinates"),
        "answer_style": entry.get("answer_style"),
        "cot": entry.get("cot"),
    }
    info = _info(Path(name))
    if info is None and chosen:
        raise ValueError(f"data: {name}#{chosen}: expected LLaMA-Factory's dataset_info.json before the #")
    if info is None:
        yield DataFile(name, _rows(Path(name), cache_dir), **common)
        return
    for path, columns in datasets_of(info, Path(name), [part for part in chosen.split(",") if part]):
        yield DataFile(str(path), _rows(path, cache_dir), columns=columns, **common)


def _rows(path: Path, cache_dir: str | None) -> Path:
    """The file of JSON rows: parquet is unpacked once, everything else is read where it is."""
    with path.open("rb") as file:
        return unpack(path, cache_dir) if file.read(len(MAGIC)) == MAGIC else path


def _info(path: Path) -> dict[str, Any] | None:
    """The content of a dataset_info.json: an object of objects that name files; None for any other file."""
    if path.stat().st_size > MAX_INFO_BYTES:
        return None
    content = path.read_bytes()
    if content.lstrip()[:1] != b"{" or b'"file_name"' not in content:
        return None
    try:
        info = json.loads(content)
    except MALFORMED:
        return None
    return info if isinstance(info, dict) and info and all(isinstance(v, dict) for v in info.values()) else None
