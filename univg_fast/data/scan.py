"""Look at all data before anything is trained: what is there, what is skipped, and is that too much?"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from univg_fast.structs import BadRecord, Record

from .coordinates import Numbers
from .errors import Refused
from .files import DataFile, data_files
from .formats import RawRecord, read_row
from .images import PROBE_THREADS, Header, Headers
from .index import Records, place
from .jsonfile import Row, read_rows
from .prompts import prompt_text, target_text
from .records import Reading, image_paths, make_record, usable

CHUNK = 1024  # rows held at once
SHOWN = 5  # bad entries that an error message quotes


@dataclass
class FileReport:
    """What one file held."""

    name: str
    good: int = 0
    bad: list[BadRecord] = field(default_factory=list)
    formats: Counter[str] = field(default_factory=Counter)
    tasks: Counter[str] = field(default_factory=Counter)
    warnings: list[str] = field(default_factory=list)
    example: dict[str, str] | None = None


@dataclass(frozen=True)
class Report:
    """What a scan found; `bad` in the order of the files, so that every rank writes and decides the same."""

    files: dict[str, int]  # path -> entries, good and bad
    tasks: dict[str, int]  # task -> good records
    good: int
    bad: tuple[BadRecord, ...]
    formats: dict[str, dict[str, int]] = field(default_factory=dict)  # path -> format -> good records
    warnings: tuple[str, ...] = ()
    examples: dict[str, dict[str, str]] = field(default_factory=dict)  # path -> source, prompt, target of one record

    @classmethod
    def of(cls, reports: Sequence[FileReport]) -> Report:
        """One report of all files; a file that is read twice counts twice."""
        files: Counter[str] = Counter()
        for report in reports:
            files[report.name] += report.good + len(report.bad)
        tasks = sum((report.tasks for report in reports), Counter())
        return cls(
            files=dict(files),
            tasks=dict(sorted(tasks.items())),
            good=sum(report.good for report in reports),
            bad=tuple(entry for report in reports for entry in report.bad),
            formats={report.name: dict(sorted(report.formats.items())) for report in reports},
            warnings=tuple(dict.fromkeys(warning for report in reports for warning in report.warnings)),
            examples={report.name: report.example for report in reports if report.example is not None},
        )

    @property
    def kinds(self) -> dict[str, int]:
        """Number of bad entries of each kind."""
        return dict(sorted(Counter(entry.kind for entry in self.bad).items()))

    @property
    def bad_fraction(self) -> float:
        return len(self.bad) / max(1, self.good + len(self.bad))

    def content(self) -> dict[str, Any]:
        """What data_report.json says of it."""
        return asdict(self) | {"bad_fraction": self.bad_fraction, "kinds": self.kinds}

    def summary(self) -> str:
        """One line for the log."""
        skipped = f"{len(self.bad)} bad records skipped"
        if self.bad:
            skipped += " (" + ", ".join(f"{kind} {number}" for kind, number in self.kinds.items()) + ")"
        return f"{self.good} records of {len(self.tasks)} tasks from {len(self.files)} files, {skipped}"

    def details(self) -> list[str]:
        """Lines for the log: each file's format, one rendered example of it, and what looks wrong."""
        lines = []
        for name, formats in self.formats.items():
            lines.append(f"{name}: {', '.join(f'{kind} {number}' for kind, number in formats.items()) or 'no record'}")
            if name in self.examples:
                lines += [f"  {key}: {self.examples[name][key]!r}" for key in ("source", "prompt", "target")]
        return lines + [f"warning: {warning}" for warning in self.warnings]


def scan(
    paths: Iterable[str | Path | Mapping[str, Any]],
    image_root: str | Path | None = None,
    needs: str | None = None,
    *,
    cache_dir: str | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    **reading: Any,
) -> tuple[Records, Report]:
    """Read all files, of which only the records' places are kept. The same files give the same result on every rank.

    `paths`: data entries (files.py). A record without `needs` ("box" or "response") is bad here, and not at the step
    that would use it. Ids are unique: one that came before gets "@" and a number. `reading`: exif, min_pixels,
    max_pixels, factor, answer_style, as in Reading. `progress(file, bytes done, bytes in all)` hears how far it is.
    ValueError for a missing file only: `require` says whether the report is good enough to train on.
    """
    records, headers = Records(), Headers()
    reports: list[FileReport] = []
    with ThreadPoolExecutor(PROBE_THREADS) as pool:
        for file in data_files(paths, image_root, cache_dir):
            how = {key: value for key, value in reading.items() if value is not None}
            told = {"coordinates": file.coordinates, "answer_style": file.answer_style}
            how |= {key: value for key, value in told.items() if value is not None}
            scanner = _Scanner(file, Reading(root=file.root, headers=headers, **how), needs, records, pool)
            reports.append(scanner.run(progress))
    records.finish()
    return records, Report.of(reports)


class _Scanner:
    """One file's way into the records and a report."""

    def __init__(self, file: DataFile, reading: Reading, needs: str | None, records: Records, pool: ThreadPoolExecutor):
        self.file, self.reading, self.needs, self.records, self.pool = file, reading, needs, records, pool
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
        self.reading.headers.look_at((p for raw in raws for p in image_paths(raw, self.reading.root)), self.pool)
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
            record = self._made(raw, source, uid)
        except Refused as error:
            refused = error
            self._refuse(error.bad_record(source))
        numbers = self.numbers.setdefault(system, Numbers(system))
        numbers.add((target.box for target in raw.targets), refused is not None and refused.kind == "box")
        if refused is not None:
            return
        self.records.add(row, raw.turn, record.uid)
        self.report.good += 1
        self.report.formats[raw.format] += 1
        self.report.tasks[record.task] += 1
        if self.report.example is None:
            self.report.example = rendered(record)

    def _made(self, raw: RawRecord, source: str, uid: str) -> Record:
        """The record, if its images and all that the stage needs are there."""
        headers = [self.reading.headers[path] for path in image_paths(raw, self.reading.root)]
        if problem := next((header for header in headers if isinstance(header, Refused)), None):
            raise problem
        record = make_record(raw, source, uid, self.reading)
        if self.needs is not None and getattr(record, self.needs) is None:
            raise Refused("schema", f"expected a {self.needs}, which this stage needs; the record has none")
        self.rotated += any(isinstance(header, Header) and header.orientation != 1 for header in headers)
        return record

    def _refuse(self, bad: BadRecord) -> None:
        self.report.bad.append(bad)


def rendered(record: Record) -> dict[str, str]:
    """What a person looks at to see that a file was understood: the prompt and what answers it."""
    return {"source": record.source, "prompt": prompt_text(record), "target": target_text(record)}


def require(report: Report, max_bad_fraction: float) -> None:
    """ValueError if more than `max_bad_fraction` of the entries are bad, or if there is no good one."""
    if report.bad_fraction > max_bad_fraction or not report.good:
        raise ValueError(_complaint(report, max_bad_fraction))


def write_report(path: str | Path, reports: dict[str, Report]) -> None:
    """Write data_report.json: for each name (sft, grpo, eval) the counts and every bad entry."""
    content = {name: report.content() for name, report in reports.items()}
    Path(path).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _complaint(report: Report, bound: float) -> str:
    total = report.good + len(report.bad)
    lines = [f"data: {len(report.bad)} of {total} records in {', '.join(report.files) or 'no files'} are bad"]
    if report.bad_fraction > bound:
        lines[0] += f" ({report.bad_fraction:.1%}, more than data.max_bad_fraction={bound:g})"
    else:
        lines[0] += ", and no good one is left"
    lines += [f"  {kind}: {number}" for kind, number in report.kinds.items()]
    lines += [f"  {entry.message}" for entry in report.bad[:SHOWN]]
    if len(report.bad) > SHOWN:
        lines.append(f"  ... and {len(report.bad) - SHOWN} more")
    lines.append("Repair the files, or raise data.max_bad_fraction to train without these records.")
    return "\n".join(lines)
