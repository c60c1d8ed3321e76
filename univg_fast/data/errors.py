"""The one way in which the data says no to an entry."""

from __future__ import annotations

from univg_fast.structs import BadRecord


class Refused(ValueError):
    """Why an entry gives no record or no sample.

    `kind` is one of BadRecord's; `source` ("path:line") is given where it is known.
    """

    def __init__(self, kind: str, problem: str, source: str = ""):
        super().__init__(f"{source}: {problem}" if source else problem)
        self.kind, self.problem, self.source = kind, problem, source

    def bad_record(self, source: str = "") -> BadRecord:
        """The report of it; `source` where the error does not know its own."""
        source = self.source or source
        return BadRecord(source, self.kind, f"{source}: {self.problem}")


class DecodeError(Refused):
    """An image whose header looked right and whose body is damaged."""

    def __init__(self, source: str, path: str, reason: str):
        super().__init__("decode", f"cannot decode the image {path}: {reason}", source)
        self.path = path
