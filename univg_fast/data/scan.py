"""Look at all data before anything is trained: each entry is read once, and the place of each good one is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

from univg_fast.structs import BadRecord, Record

from .coordinates import Numbers
from .errors import Refused
from .files import DataFile, data_files
from .findings import FileReport, Report, rendered, require, write_report
from .formats import RawRecord, read_row
from .images import PROBE_THREADS, Header, Headers, Look, probe_all
from .index import Records, place
from .jsonfile import Row, read_rows
from .records import Reading, image_paths, read_record, usable

__all__ = ["Report", "require", "scan", "write_report"]

CHUNK = 1024  # rows held at once


def scan(
    paths: Iterable[str | Path | Mapping[str, Any]],
    image_root: str | Path | None = None,
    needs: str | None = None,
    *,
    problem_of: Callable[[Record], str | None] = lambda record: None,
    cache_dir: str | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    look: Look = probe_all,
    **reading: Any,
) -> tuple[Records, Report]:
    """Read all files, of which the records' places and images' sizes are kept. They give the same result on every rank.

    `paths`: data entries (files.py). A record without `needs` ("box" or "response") is bad here, and not at the step
    that would use it, and so is one that `problem_of` says something about; responses are not read where boxes are
    needed. Ids are unique: one that came before gets
    "@" and a number. `reading`: exif, min_pixels, max_pixels, factor, answer_style, name_images, as in Reading.
    `progress(file, bytes done, bytes in all)` hears how far it is. `look` opens the images of a chunk of rows.
    ValueError for a missing file only: `require` says whether the report is good enough to train on.
    """
    records, headers = Records(), Headers(look=look)
    reports: list[FileReport] = []
    with ThreadPoolExecutor(PROBE_THREADS) as pool:
        for file in data_files(paths, image_root, cache_dir):
            how = {key: value for key, value in reading.items() if value is not None}
            told = {"coordinates": file.coordinates, "answer_style": file.answer_style, "cot": file.cot}
            told |= {"learned": needs != "box"}
            how |= {key: value for key, value in told.items() if value is not None}
            reads = Reading(root=file.root, headers=headers, **how)
            scanner = _Scanner(file, reads, headers, needs, problem_of, records, pool)
            reports.append(scanner.run(progress))
    records.finish()
    return records, Report.of(reports)


class _Scanner:
    """One file's way into the records and a report."""

    def __init__(
        self,
        file: DataFile,
        reading: Reading,
        headers: Headers,
        needs: str | None,
        problem_of: Callable[[Record], str | None],
        records: Records,
        pool: ThreadPoolExecutor,
    ):
        self.file, self.reading, self.headers, self.records, self.pool = file, reading, headers, records, pool
        self.needs, self.problem_of = needs, problem_of
        self.report = FileReport(file.name)
        self.numbers: dict[str, Numbers] = {}
        self.rotated = 0

    def run(self, progress: Callable[[str, int, int], None] | None = None) -> FileReport:
        self.records.begin(self.file, self.reading)
        rows, size = read_rows(self.file.path, self.file.name), self.file.path.stat().st_size
        while chunk := list(islice(rows, CHUNK)):
            self._chunk(chunk)
            last = next((item for item in reversed(chunk) if isinstance(item, Row)), None)
            if progress is not None and last is not None:
                progress(self.file.name, last.offset + last.length, size)
        told = [numbers.contradiction() for numbers in self.numbers.values()]
        self.report.warnings += [f"{self.file.name}: {problem} (coordinates)" for problem in told if problem]
        if self.rotated and self.reading.exif == "ignore":
            problem = (
                f"{self.rotated} records have images that EXIF turns, and their stored pixels are used (data.exif)"
            )
            self.report.warnings.append(f"{self.file.name}: {problem}")
        return self.report

    def _chunk(self, chunk: list[Row | BadRecord]) -> None:
        read = [item if isinstance(item, BadRecord) else (item, self._read(item)) for item in chunk]
        raws = [raw for item in read if isinstance(item, tuple) and isinstance(item[1], list) for raw in item[1]]
        self.headers.look_at((p for raw in raws for p in image_paths(raw, self.reading.root)), self.pool)
        for item in read:
            if isinstance(item, BadRecord):
                self._refuse(item)
            elif isinstance(item[1], BadRecord):
                self._refuse(item[1])
            else:
                for raw in item[1]:
                    self._record(item[0], raw)

    def _read(self, row: Row) -> list[RawRecord] | BadRecord:
        value = row.value if self.file.columns is None else self.file.columns.apply(row.value)
        try:
            return list(usable(read_row(value, self.reading.root)))
        except Refused as error:
            return error.bad_record(place(self.file, row, 0, 1)[0])

    def _record(self, row: Row, raw: RawRecord) -> None:
        source, uid = place(self.file, row, raw.turn, raw.turns)
        system = self.reading.coordinates or raw.coordinates
        refused = None
        try:
            record, form, headers = self._made(raw, source, uid)
        except Refused as error:
            refused = error
            self._refuse(error.bad_record(source, None if raw.uid is None else str(raw.uid)))
        numbers = self.numbers.setdefault(system, Numbers(system))
        numbers.add((target.box for target in raw.targets), refused is not None and refused.kind == "box")
        if refused is not None:
            return
        self.records.add(row, raw.turn, record.uid, headers)
        self.report.good += 1
        self.report.formats[raw.format] += 1
        self.report.tasks[record.task] += 1
        self.report.rewritten.update([form] if form else [])
        if self.report.example is None:
            self.report.example = rendered(record)

    def _made(self, raw: RawRecord, source: str, uid: str) -> tuple[Record, str | None, list[Header]]:
        """The record, if its images and all that the stage needs are there; to what its response was rewritten."""
        headers = []
        for header in map(self.headers.__getitem__, image_paths(raw, self.reading.root)):
            if isinstance(header, Refused):
                raise header
            headers.append(header)
        record, form = read_record(raw, source, uid, self.reading)
        if self.needs is not None and getattr(record, self.needs) is None:
            remedy = "; univg_fast.cot build makes it of boxes" if self.needs == "response" else ""
            raise Refused("schema", f"expected a {self.needs}, which this stage needs; the record has none{remedy}")
        if problem := self.problem_of(record):
            raise Refused("schema", problem)
        self.rotated += any(header.orientation != 1 for header in headers)
        return record, form, headers

    def _refuse(self, bad: BadRecord) -> None:
        self.report.bad.append(bad)
