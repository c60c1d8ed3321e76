"""Look at all data before anything is trained: what is there, what is skipped, and is that too much?"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from univg_fast.structs import BadRecord, Record

from .records import read_records

SHOWN = 5  # bad entries that an error message quotes


@dataclass(frozen=True)
class Report:
    """What a scan found; `bad` in the order of the files, so that every rank writes and decides the same."""

    files: dict[str, int]  # path -> entries, good and bad
    tasks: dict[str, int]  # task -> good records
    good: int
    bad: tuple[BadRecord, ...]

    @property
    def kinds(self) -> dict[str, int]:
        """Number of bad entries of each kind."""
        return dict(sorted(Counter(entry.kind for entry in self.bad).items()))

    @property
    def bad_fraction(self) -> float:
        return len(self.bad) / max(1, self.good + len(self.bad))

    def summary(self) -> str:
        """One line for the log."""
        skipped = f"{len(self.bad)} bad records skipped"
        if self.bad:
            skipped += " (" + ", ".join(f"{kind} {number}" for kind, number in self.kinds.items()) + ")"
        return f"{self.good} records of {len(self.tasks)} tasks from {len(self.files)} files, {skipped}"


def scan(
    paths: Sequence[str | Path], image_root: str | Path | None = None, needs: str | None = None
) -> tuple[list[Record], Report]:
    """Read all files. The same files give the same result on every rank; nothing depends on rank or time.

    A record without `needs` ("box" or "response") is bad here, and not at the step that would use it. Ids are unique:
    one that came before gets "@" and a number.
    ValueError for a missing file only: `require` says whether the report is good enough to train on.
    """
    records: list[Record] = []
    bad: list[BadRecord] = []
    files: dict[str, int] = {}
    seen: Counter[str] = Counter()
    for path in paths:
        good_here, bad_here = read_records(path, image_root)
        for record in good_here:
            if needs is not None and getattr(record, needs) is None:
                problem = f"{record.source}: expected a {needs}, which this stage needs; the record has none"
                bad.append(BadRecord(record.source, "schema", problem))
                continue
            seen[record.uid] += 1
            again = seen[record.uid] > 1
            records.append(replace(record, uid=f"{record.uid}@{seen[record.uid]}") if again else record)
        bad += bad_here
        files[str(path)] = len(good_here) + len(bad_here)
    tasks = dict(sorted(Counter(record.task for record in records).items()))
    return records, Report(files, tasks, len(records), tuple(bad))


def require(report: Report, max_bad_fraction: float) -> None:
    """ValueError if more than `max_bad_fraction` of the entries are bad, or if there is no good one."""
    if report.bad_fraction > max_bad_fraction or not report.good:
        raise ValueError(_complaint(report, max_bad_fraction))


def write_report(path: str | Path, reports: dict[str, Report]) -> None:
    """Write data_report.json: for each name (sft, grpo, eval) the counts and every bad entry."""
    content = {
        name: asdict(report) | {"bad_fraction": report.bad_fraction, "kinds": report.kinds}
        for name, report in reports.items()
    }
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
