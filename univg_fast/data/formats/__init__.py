"""The formats of the field, each a small file with `recognise(row)`, `read(row, root)` and `write(records, name)`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from univg_fast.data.errors import Refused

from . import conversations, grounding, ms_swift, own, problems, questions
from .raw import RawRecord, RawTarget, brief

__all__ = ["FORMATS", "RawRecord", "RawTarget", "read_row", "recognise", "write_row"]

READERS = (own, ms_swift, grounding, conversations, problems, questions)  # the first that knows a row's keys reads it
FORMATS: dict[str, Any] = {name: reader for reader in READERS for name in reader.NAMES}
EXPECTED = (
    "expected the keys of a known format: conversations or messages, question and answer, or targets (docs/data.md)"
)


def recognise(row: Any) -> str | None:
    """The name of the format of a decoded entry, by its keys and the shape of its values; None for none of them."""
    if not isinstance(row, dict):
        return None
    return next((name for reader in READERS if (name := reader.recognise(row)) is not None), None)


def read_row(row: Any, root: Path) -> list[RawRecord]:
    """The records of a decoded entry, nothing of them opened or converted; Refused says what is wrong with it."""
    if not isinstance(row, dict):
        raise Refused("schema", f"expected an object, got {brief(row)}")
    try:
        name = recognise(row)
        if name is None:
            raise Refused("schema", f"{EXPECTED}, got {', '.join(map(str, row))[:200] or 'none'}")
        return FORMATS[name].read(row, root)
    except RecursionError:
        raise Refused("schema", "the entry is nested too deeply") from None


def write_row(records: Sequence[RawRecord], name: str) -> dict[str, Any]:
    """The entry in which format `name` writes these records (several: the turns of one conversation).

    Refused where the format cannot hold them; ValueError for a format that does not exist.
    """
    if name not in FORMATS:
        raise ValueError(f"--to: expected one of {', '.join(FORMATS)}, got {name!r}")
    return FORMATS[name].write(records, name)
