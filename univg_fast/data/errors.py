"""The ways in which the data says no to an entry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from univg_fast.structs import BadRecord, Record

LONGEST = 1000  # characters of a message: what a damaged file holds may be endless


class Refused(ValueError):
    """Why an entry of a file is no record; `kind` is one of BadRecord's. The reader knows where it stands."""

    def __init__(self, kind: str, problem: str):
        super().__init__(problem)
        self.kind, self.problem = kind, problem

    def __reduce__(self) -> tuple[Any, ...]:  # on its way to other ranks
        return Refused, (self.kind, self.problem)

    def bad_record(self, source: str, uid: str | None = None) -> BadRecord:
        problem, uid = _cut(self.problem), None if uid is None else _cut(uid)
        return BadRecord(source, self.kind, f"{named(source, uid)}: {problem}", uid)


class SampleError(ValueError):
    """Why a record gives no sample; where it stands, "path:line", and its id begin the message."""

    def __init__(self, record: Record, kind: str, problem: str):
        super().__init__(f"{named(record.source, record.uid)}: {problem}")
        self.record, self.kind = record, kind

    def bad_record(self) -> BadRecord:
        return BadRecord(self.record.source, self.kind, str(self), self.record.uid)


class DecodeError(SampleError):
    """An image whose header looked right and whose body is damaged."""

    def __init__(self, record: Record, path: str, reason: str):
        super().__init__(record, "decode", f"cannot decode the image {path}: {reason}")
        self.path = path


def unexpected(what: str, records: Sequence[Record], error: Exception) -> RuntimeError:
    """An error that no entry of a file should cause, with the entries that did."""
    which = ", ".join(named(record.source, record.uid) for record in records)
    return RuntimeError(f"{what} of {which}: {type(error).__name__}: {error}")


def named(source: str, uid: str | None) -> str:
    """How a person finds an entry: its place, and its id unless it is made of the place ("stem:line")."""
    made = uid is None or (":" in uid and uid.rpartition(":")[2] == source.rpartition(":")[2])
    return source if made else f"{source} ({uid})"


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[:LONGEST] + "..."
