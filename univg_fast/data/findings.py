"""What a scan found: counts, formats, bad entries, warnings, an example of each file; and is it good enough?"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from univg_fast.structs import BadRecord, Record

from .prompts import prompt_text, target_text

SHOWN = 5  # bad entries that an error message quotes


@dataclass
class FileReport:
    """What one file held."""

    name: str
    good: int = 0
    bad: list[BadRecord] = field(default_factory=list)
    formats: Counter[str] = field(default_factory=Counter)
    tasks: Counter[str] = field(default_factory=Counter)
    rewritten: Counter[str] = field(default_factory=Counter)
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
    rewritten: dict[str, dict[str, int]] = field(default_factory=dict)  # path -> form -> responses brought into it

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
            rewritten={report.name: dict(sorted(report.rewritten.items())) for report in reports if report.rewritten},
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
            rewritten = self.rewritten.get(name, {}).items()
            lines += [f"  {number} response{'s' * (number > 1)} rewritten to {form}" for form, number in rewritten]
            if name in self.examples:
                lines += [f"  {key}: {self.examples[name][key]!r}" for key in ("source", "prompt", "target")]
        return lines + [f"warning: {warning}" for warning in self.warnings]


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
