"""From any format to any other, and by way of the project's own format back without loss."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from univg_fast.structs import BadRecord

from .errors import Refused
from .files import DataFile, data_files
from .fitting import TALKS, Fitting
from .formats import FORMATS, RawRecord, own, read_row
from .index import place
from .jsonfile import Row, read_rows
from .parquet import Unwritable, write_parquet


@dataclass
class Converted:
    """How many rows were written, and what could not be."""

    written: int = 0
    bad: list[BadRecord] = field(default_factory=list)
    without: Counter[str] = field(default_factory=Counter)  # of rows that were written: what they do not hold
    further: set[str] = field(default_factory=set)  # keys of rows that mean nothing to their format

    def summary(self) -> str:
        """What was left out, and why, in a line."""
        reasons = Counter(bad.message.removeprefix(f"{bad.source}: ") for bad in self.bad)
        named = [f"{count}: {reason}" for reason, count in reasons.most_common(3)]
        said = f"{len(self.bad)} entries left out" + (f" ({'; '.join(named)})" if named else "")
        return ", ".join([said, *(f"{count} {what}" for what, count in self.without.items() if count)])


def convert(entry: Any, out: str | Path, to: str) -> Converted:
    """Write a data entry (a path, or a mapping with `path`) as format `to`: JSONL, `.json` a list, `.parquet` parquet.

    A row of the format it came from is restored; one of another format has its boxes counted 0-1000 of their images,
    whose headers are then read. Each row is read again before it is written: one that would not say the same is left
    out and named. Relative image paths are those from OUT's folder. Where no row is written, OUT stays as it is.
    ValueError for an unknown format, a missing file or folder, or a table that parquet cannot hold.
    """
    if to not in FORMATS:
        raise ValueError(f"--to: expected one of {', '.join(FORMATS)}, got {to!r}")
    done, out = Converted(), Path(out)
    if not out.parent.is_dir():
        raise ValueError(f"{out} cannot be written: there is no folder {out.parent}")
    place = Path(os.path.realpath(out))  # of a link the file that it names
    if place.exists() and not place.is_file():
        raise ValueError(f"{out} cannot be written: expected a file, and it is none")
    files = data_files([entry])
    home = files[0].root if out.suffix == ".parquet" else out.parent  # images of parquet lie inside
    rows = (row for file in files for row in _rows(file, home, to, done))
    # Beside its place until it is whole: OUT may be one of the files that are read, and an error leaves it as it was.
    unfinished = place.with_name(f".{place.stem}.unfinished{out.suffix}")
    try:
        if out.suffix == ".parquet":
            whole = list(rows)
            write_parquet(unfinished, whole, home, None if to in own.NAMES else done.further)
        else:
            _write_json(unfinished, rows)
        if done.written:  # else there is nothing in it to replace a file with
            unfinished.replace(place)
    except Unwritable as error:
        raise ValueError(f"{out} cannot be written: {error}") from None
    except OSError as error:
        if error.filename not in (str(unfinished), None):
            raise
        raise ValueError(f"{out} cannot be written: {error.strerror or error}") from None
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


def _rows(file: DataFile, home: Path, to: str, done: Converted) -> Iterator[dict[str, Any]]:
    """What is to be written, row by row."""
    fitting = Fitting(file, home, to)
    for source, raws in _conversations(file, done):
        together = len(raws) > 1 and to in TALKS
        groups: Iterable[Sequence[RawRecord]] = [raws] if together else [[raw] for raw in raws]
        for group in groups:
            where = source if together or len(raws) == 1 else f"{source}#{group[0].turn}"
            try:
                row, without = fitting.row(group, where)
            except Refused as error:
                done.bad.append(error.bad_record(where))
                continue
            done.written += 1
            done.without += without
            done.further.update(*(raw.extra for raw in group))
            yield row


def _conversations(file: DataFile, done: Converted) -> Iterator[tuple[str, list[RawRecord]]]:
    """(source, the records of one conversation); in our own format they stand on lines of their own."""
    held: list[RawRecord] = []
    source = file.name
    for row in read_rows(file.path, file.name):
        if isinstance(row, BadRecord):
            done.bad.append(row)
            continue
        here = place(file, row, 0, 1)[0]
        try:
            raws = read_row(_value(file, row), file.root)
        except Refused as error:
            done.bad.append(error.bad_record(here))
            continue
        if held and raws[0].turn != held[-1].turn + 1:  # a conversation that has lost its end
            yield source, held
            held = []
        source, held = here, held + raws
        if held[-1].turn + 1 >= held[-1].turns:
            yield source, held
            held = []
    if held:
        yield source, held


def _value(file: DataFile, row: Row) -> Any:
    return row.value if file.columns is None else file.columns.apply(row.value)
