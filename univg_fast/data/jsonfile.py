"""Rows of a JSON list or a JSONL file, each with the line it starts on; what cannot be read is reported, not raised."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from univg_fast.structs import BadRecord

SPACE = re.compile(r"[\s,]*")


def read_rows(path: Path) -> Iterator[tuple[int, Any] | BadRecord]:
    """Yield (line, value), lines counted from 1, or a BadRecord of kind json. ValueError if there is no such file."""
    if not path.is_file():
        raise ValueError(
            f"data: expected a JSON or JSONL file, got {path}, which does not exist or is not a file"
        )
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        yield BadRecord(
            f"{path}:{line}", "json", f"{path}:{line}: not UTF-8 ({error.reason}); repair the file's encoding"
        )
        text = raw.decode("utf-8-sig", errors="replace")
    yield from (_list_rows if text.lstrip().startswith("[") else _jsonl_rows)(path, text)


def _jsonl_rows(path: Path, text: str) -> Iterator[tuple[int, Any] | BadRecord]:
    for line, row in enumerate(text.split("\n"), 1):
        if row.strip():
            try:
                yield line, json.loads(row)
            except json.JSONDecodeError as error:
                yield _bad(
                    path,
                    line,
                    f"{error.msg} at column {error.colno} of {len(row)}: the line is cut or malformed",
                )


def _list_rows(path: Path, text: str) -> Iterator[tuple[int, Any] | BadRecord]:
    """Elements one after another, so that what stands before a damaged place is kept and has its true line."""
    decoder = json.JSONDecoder()
    at, line, counted = text.index("[") + 1, 1, 0
    while True:
        at = SPACE.match(text, at).end()  # type: ignore[union-attr]  # matches everywhere
        line, counted = line + text.count("\n", counted, at), at
        if at < len(text) and text[at] == "]":
            return
        try:
            value, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            lost = len(text) - at
            yield _bad(
                path,
                line,
                f"the list is cut or malformed in the element that starts here ({error.msg} at line {error.lineno}); "
                f"the {lost} characters from here on are not read",
            )
            return
        yield line, value


def _bad(path: Path, line: int, problem: str) -> BadRecord:
    return BadRecord(f"{path}:{line}", "json", f"{path}:{line}: {problem}")
