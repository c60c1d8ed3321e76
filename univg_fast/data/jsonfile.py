"""Rows of a JSON list or a JSONL file, each with its place; what cannot be read is reported, not raised.

Lines are read one at a time, so that a file of any length takes no memory; a list is held as text while it is scanned.
`read_row` returns to a row by its bytes.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from univg_fast.structs import BadRecord

SPACE = re.compile(r"[\s,]*")
BOM = b"\xef\xbb\xbf"
SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")  # half of a character beyond the first 65536: legal only in pairs
# Beyond JSONDecodeError: a number of more than 4300 digits, and brackets nested deeper than Python's stack.
MALFORMED = (ValueError, RecursionError)


@dataclass(frozen=True)
class Row:
    """A decoded entry and where it stands: line from 1, bytes in the file, index where lines hold several entries."""

    value: Any
    line: int
    offset: int
    length: int
    index: int | None = None

    @property
    def place(self) -> str:
        """ "12", or "1[3]" where the line holds several entries."""
        return f"{self.line}" if self.index is None else f"{self.line}[{self.index}]"


def read_rows(path: Path, name: str | None = None) -> Iterator[Row | BadRecord]:
    """Yield every row, or a BadRecord of kind json under `name`. ValueError if there is no such file."""
    if not path.is_file():
        raise ValueError(f"data: expected a JSON or JSONL file, got {path}: no such file")
    name = name or str(path)
    with path.open("rb") as file:
        head = file.read(4096)
        file.seek(0)
        for item in _list_rows(file.read()) if head.removeprefix(BOM).lstrip()[:1] == b"[" else _jsonl_rows(file):
            if isinstance(item.value, _Malformed):
                yield BadRecord(f"{name}:{item.line}", "json", f"{name}:{item.line}: {item.value.problem}")
            else:
                yield item


def read_row(descriptor: int, offset: int, length: int) -> Any:
    """The row of these bytes of an open file, from any thread. ValueError if there is no JSON there any more."""
    return json.loads(os.pread(descriptor, length, offset))


@dataclass(frozen=True)
class _Malformed:
    problem: str


def _jsonl_rows(lines: Iterator[bytes]) -> Iterator[Row]:
    offset = 0
    for number, line in enumerate(lines, 1):
        start = len(BOM) if number == 1 and line.startswith(BOM) else 0
        text = line[start:]
        if text.strip():
            yield Row(_decode(text), number, offset + start, len(text))
        offset += len(line)


def _decode(line: bytes) -> Any:
    try:
        text = line.decode()
    except UnicodeDecodeError:
        return _Malformed("holds bytes that are not UTF-8")
    try:
        value = json.loads(text)
    except MALFORMED as error:
        return _Malformed(f"not JSON, the line is cut or malformed ({error})")
    return _checked(value, line)


def _checked(value: Any, source: bytes) -> Any:
    r"""The value, unless it holds half a surrogate pair (\ud800): no tokenizer and no file takes that."""
    if SURROGATE.search(source):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except MALFORMED:
            return _Malformed(r"holds half of a surrogate pair (\ud800 to \udfff), which is no text")
    return value


def _list_rows(content: bytes) -> Iterator[Row]:
    """Elements with an index where their line holds more than one."""
    before, held = 0, None
    for index, row in enumerate(_elements(content)):
        shares = held is not None and held.line == row.line
        if held is not None:
            yield _indexed(held, index - 1) if shares or before == held.line else held
            before = held.line
        held = row
    if held is not None:
        yield _indexed(held, index) if before == held.line else held


def _indexed(row: Row, index: int) -> Row:
    return Row(row.value, row.line, row.offset, row.length, index)


def _elements(content: bytes) -> Iterator[Row]:
    """One element after another, so that what stands before a damaged place is kept and has its true line."""
    text = content.decode("utf-8", errors="surrogateescape")
    plain = text.isascii()
    decoder = json.JSONDecoder()
    at, line, counted, offset = text.index("[") + 1, 1, 0, 0
    while True:
        at = SPACE.match(text, at).end()  # type: ignore[union-attr]  # matches everywhere
        line += text.count("\n", counted, at)
        offset = at if plain else offset + len(text[counted:at].encode("utf-8", errors="surrogateescape"))
        counted = at
        if text[at : at + 1] == "]":
            return
        try:
            value, end = decoder.raw_decode(text, at)
        except MALFORMED as error:
            lost = f"nothing of the {len(text) - at} characters from here on is read"
            yield Row(_Malformed(f"the list is cut or malformed in the element that starts here ({error}); {lost}"),
                      line, offset, 0)  # fmt: skip
            return
        source = text[at:end].encode("utf-8", errors="surrogateescape")
        try:
            source.decode()
        except UnicodeDecodeError:
            value = _Malformed("holds bytes that are not UTF-8")
        yield Row(_checked(value, source), line, offset, len(source))
        at = end
