"""From any format to any other, and by way of the project's own format back without loss."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from univg_fast.structs import BadRecord

from .errors import Refused
from .files import DataFile, data_files
from .formats import FORMATS, RawRecord, RawTarget, conversations, own, read_row, write_row
from .index import place
from .jsonfile import Row, read_rows
from .parquet import write_parquet
from .records import Reading, fill_raw, make_record

KEEPS_SYSTEM = (*own.NAMES, "ms_swift")  # formats that say in which system their boxes are


@dataclass
class Converted:
    """How many rows were written, and what could not be."""

    written: int = 0
    bad: list[BadRecord] = field(default_factory=list)


def convert(entry: Any, out: str | Path, to: str) -> Converted:
    """Write a data entry (a path, or a mapping with `path`) as format `to`: JSONL, `.json` a list, `.parquet` parquet.

    Image paths stay as they are. A row of the format it came from is restored; one of another format has its boxes
    counted 0-1000 of their images, whose headers are then read. Rows that do not fit the format are left out and named.
    ValueError for an unknown format or a missing file.
    """
    if to not in FORMATS:
        raise ValueError(f"--to: expected one of {', '.join(FORMATS)}, got {to!r}")
    done, out = Converted(), Path(out)
    files = data_files([entry])
    rows = (row for file in files for row in _rows(file, to, done))
    # Beside its place until it is whole: OUT may be one of the files that are read, and an error leaves it as it was.
    unfinished = out.with_name(f".{out.stem}.unfinished{out.suffix}")
    try:
        if out.suffix == ".parquet":
            write_parquet(unfinished, rows, files[0].root)
        else:
            _write_json(unfinished, rows)
        unfinished.replace(out)
    finally:
        unfinished.unlink(missing_ok=True)
    return done


def _write_json(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as written:
        written.write("[\n" if path.suffix == ".json" else "")
        for number, row in enumerate(rows):
            comma = ",\n" if path.suffix == ".json" and number else ""
            written.write(comma + json.dumps(row, ensure_ascii=False) + ("" if path.suffix == ".json" else "\n"))
        written.write("\n]\n" if path.suffix == ".json" else "")


def _rows(file: DataFile, to: str, done: Converted) -> Iterator[dict[str, Any]]:
    """What is to be written, row by row."""
    reading = Reading(root=file.root, coordinates=file.coordinates)
    for source, raws in _conversations(file, done):
        try:
            together = len(raws) > 1 and to in conversations.NAMES
            groups: Iterable[Sequence[RawRecord]] = [raws] if together else [[raw] for raw in raws]
            rows = [write_row([_fitting(raw, to, source, reading) for raw in group], to) for group in groups]
        except Refused as error:
            done.bad.append(error.bad_record(source))
            continue
        done.written += len(rows)
        yield from rows


def _conversations(file: DataFile, done: Converted) -> Iterator[tuple[str, list[RawRecord]]]:
    """(source, the records of one conversation); in our own format they stand on lines of their own."""
    held: list[RawRecord] = []
    for row in read_rows(file.path, file.name):
        if isinstance(row, BadRecord):
            done.bad.append(row)
            continue
        source = place(file, row, 0, 1)[0]
        try:
            held += read_row(_value(file, row), file.root)
        except Refused as error:
            done.bad.append(error.bad_record(source))
            continue
        if held[-1].turn + 1 >= held[-1].turns:
            yield source, held
            held = []
    if held:
        yield f"{file.name}: the end", held


def _value(file: DataFile, row: Row) -> Any:
    return row.value if file.columns is None else file.columns.apply(row.value)


def _fitting(raw: RawRecord, to: str, source: str, reading: Reading) -> RawRecord:
    """The record in words that format `to` holds: as it is, or with all its boxes in 0-1000."""
    raw = raw if reading.coordinates is None else replace(raw, coordinates=reading.coordinates)
    if to in KEEPS_SYSTEM or raw.format == to or (raw.coordinates == "norm1000" and not raw.placed and not raw.refs):
        return raw
    question, response = fill_raw(raw, reading)
    record = make_record(raw, source, source, reading)
    targets = tuple(RawTarget(target.box, target.image, target.label) for target in record.targets)
    return replace(
        raw, format=to if to in own.NAMES else "converted", question=question, response=response, targets=targets,
        coordinates="norm1000", placed=(), refs=(), shape={},
    )  # fmt: skip
