"""The ways in which the data says no to an entry."""

from __future__ import annotations

from univg_fast.structs import BadRecord

LONGEST = 1000  # characters of a message: what a damaged file holds may be endless


class Refused(ValueError):
    """Why an entry of a file is no record; `kind` is one of BadRecord's. The reader knows where it stands."""

    def __init__(self, kind: str, problem: str):
        super().__init__(problem)
        self.kind, self.problem = kind, problem

    def bad_record(self, source: str) -> BadRecord:
        problem = self.problem if len(self.problem) <= LONGEST else self.problem[:LONGEST] + "..."
        return BadRecord(source, self.kind, f"{source}: {problem}")


class SampleError(ValueError):
    """Why a record gives no sample; `source` ("path:line") is the record's and begins the message."""

    def __init__(self, source: str, kind: str, problem: str):
        super().__init__(f"{source}: {problem}")
        self.source, self.kind = source, kind

    def bad_record(self) -> BadRecord:
        return BadRecord(self.source, self.kind, str(self))


class DecodeError(SampleError):
    """An image whose header looked right and whose body is damaged."""

    def __init__(self, source: str, path: str, reason: str):
        super().__init__(source, "decode", f"cannot decode the image {path}: {reason}")
        self.path = path
