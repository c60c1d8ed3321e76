"""Rows of a JSON list or a JSONL file, each with its line; what cannot be read is reported, not raised."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from univg_fast.structs import BadRecord

SPACE = re.compile(r"[\s,]*")
NOT_UTF8 = re.compile("[\udc80-\udcff]")  # how the decoder marks bytes that are not UTF-8
# Beyond JSONDecodeError: a number of more than 4300 digits, and brackets nested deeper than Python's stack.
MALFORMED = (ValueError, RecursionError)


def read_rows(path: Path) -> Iterator[tuple[int, Any] | BadRecord]:
    """Yield (line, value), lines from 1, or a BadRecord of kind json. ValueError if there is no such file."""
    if not path.is_file():
        raise ValueError(f"data: expected a JSON or JSONL file, got {path}: no such file")
    text = path.read_bytes().decode("utf-8-sig", errors="surrogateescape")
    for line, value, source in (_list_rows if text.lstrip().startswith("[") else _jsonl_rows)(text):
        if isinstance(value, _Malformed):
            yield BadRecord(f"{path}:{line}", "json", f"{path}:{line}: {value.problem}")
        elif NOT_UTF8.search(source):
            yield BadRecord(f"{path}:{line}", "json", f"{path}:{line}: holds bytes that are not UTF-8")
        else:
            yield line, value


@dataclass(frozen=True)
class _Malformed:
    problem: str


def _jsonl_rows(text: str) -> Iterator[tuple[int, Any, str]]:
    for line, row in enumerate(text.split("\n"), 1):
        if not row.strip():
            continue
        try:
            value = json.loads(row)
        except MALFORMED as error:
            value = _Malformed(f"not JSON, the line is cut or malformed ({error})")
        yield line, value, row


def _list_rows(text: str) -> Iterator[tuple[int, Any, str]]:
    """One element after another, so that what stands before a damaged place is kept and has its true line."""
    decoder = json.JSONDecoder()
    at, line, counted = text.index("[") + 1, 1, 0
    while True:
        at = SPACE.match(text, at).end()  # type: ignore[union-attr]  # matches everywhere
        line, counted = line + text.count("\n", counted, at), at
        if text[at : at + 1] == "]":
            return
        try:
            value, end = decoder.raw_decode(text, at)
        except MALFORMED as error:
            lost = f"nothing of the {len(text) - at} characters from here on is read"
            problem = f"the list is cut or malformed in the element that starts here ({error}); {lost}"
            yield line, _Malformed(problem), ""
            return
        yield line, value, text[at:end]
        at = end
