"""Records to a stage-1 file: candidates, filters, the best one, in any number of threads."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from univg_fast.cot.facts import UnknownImage, image_of
from univg_fast.cot.filters import Candidate, Thresholds, best, removed_by
from univg_fast.cot.journal import Journal
from univg_fast.cot.teacher import TeacherError
from univg_fast.cot.templates import traces
from univg_fast.data.coordinates import Size
from univg_fast.data.errors import SampleError
from univg_fast.data.formats import RawRecord, write_row
from univg_fast.data.formats.raw import MARK, RawTarget
from univg_fast.data.prompts import instruction, target_text
from univg_fast.structs import Record

Make = Callable[[Record], tuple[list[Candidate], list[Size]]]  # a record -> candidates, sizes of its images
MAX_FAILED = 20  # records that the teacher fails one after the other before the build stops


@dataclass(frozen=True)
class Judged:
    """What became of a record: its row, or why there is none."""

    row: dict[str, Any] | None
    removed: Counter[str]


def from_templates(levels: Sequence[str], number: int, seed: int) -> Make:
    """Candidates of the template builder; they have no scores, since their answer is the right one."""

    def make(record: Record) -> tuple[list[Candidate], list[Size]]:
        record = asked(record)
        return [Candidate(target_text(record, think)) for think in traces(record, levels, number, seed)], []

    return make


def build(
    records: Sequence[Record],
    make: Make,
    journal: Journal,
    thresholds: Thresholds,
    threads: int,
    progress: Callable[[int, str], None],
) -> list[str]:
    """Judge every record that the journal does not hold, then write the file; returns the failures' messages.

    `progress(done, text)`. TeacherRefused, or a ValueError after MAX_FAILED failures in a row, ends the build; what was
    judged stays in the journal.
    """
    failures: list[str] = []
    in_a_row = 0
    todo = iter(i for i in range(len(records)) if not journal.is_done(i))
    pool = ThreadPoolExecutor(threads, thread_name_prefix="cot")
    running: dict[Future[Judged], int] = {}
    try:
        while True:
            while len(running) < 2 * threads and (index := next(todo, None)) is not None:
                running[pool.submit(judge, records, index, make, thresholds, journal.out.parent)] = index
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                index = running.pop(future)
                try:
                    judged = future.result()
                except TeacherError as error:
                    failures.append(f"{records[index].source}: {error}")
                    in_a_row += 1
                    if in_a_row >= MAX_FAILED:
                        raise ValueError(f"{in_a_row} records failed one after the other; {failures[-1]}") from None
                    continue
                in_a_row = 0
                journal.add(index, judged.row, judged.removed)
                progress(journal.done, counts(journal, len(failures)))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    journal.write(len(failures))
    return failures


def judge(records: Sequence[Record], index: int, make: Make, thresholds: Thresholds, folder: Path) -> Judged:
    """One record from its candidates to the row of the best. A broken image or an unknown one removes the record."""
    record = asked(records[index])
    try:
        for target in record.targets:  # no question to a teacher whose answer could not be checked
            image_of(target, record)
        candidates, sizes = make(record)
    except SampleError:
        return Judged(None, Counter(["broken image"]))
    except UnknownImage:
        return Judged(None, Counter(["unknown image"]))
    reasons = [removed_by(candidate, record, sizes, thresholds) for candidate in candidates]
    kept = [candidate for candidate, reason in zip(candidates, reasons, strict=True) if reason is None]
    removed = Counter(reason for reason in reasons if reason is not None)
    return Judged(stage1_row(record, best(kept).think, folder) if kept else None, removed)


def asked(record: Record) -> Record:
    """The record as a question that wants reasoning."""
    return replace(record, cot=True, response=None)


def stage1_row(record: Record, think: str, folder: Path) -> dict[str, Any]:
    """A row of UniVG-R1's stage 1; image paths start at `folder`. The answer is the record's, whatever was answered."""
    raw = RawRecord(
        format="univg_fast",
        images=tuple(os.path.relpath(os.path.realpath(path), os.path.realpath(folder)) for path in record.images),
        question=f"{MARK}\n" * len(record.images) + record.question + instruction(record),
        targets=tuple(RawTarget(target.box, target.image, target.label) for target in record.targets),
        response=target_text(record, think),
        uid=record.uid,
        task=record.task,
    )
    return write_row([raw], "univg_r1_stage1")


def counts(journal: Journal, failed: int = 0) -> str:
    """How many are kept, and what each filter removed."""
    removed = [f"{name} {number}" for name, number in sorted(journal.removed.items())]
    parts = [f"kept {journal.kept} of {journal.done}", f"removed: {', '.join(removed)}" if removed else ""]
    return " | ".join(filter(None, [*parts, f"failed {failed}" if failed else ""]))
