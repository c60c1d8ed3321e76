"""A record in words that another format holds, proved by reading them again: nothing is dropped or invented unsaid."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from univg_fast.structs import Record

from .errors import Refused
from .files import DataFile
from .formats import RawRecord, RawTarget, conversations, grounding, ms_swift, own, questions, read_row, write_row
from .records import Reading, fill_raw, image_paths, make_record

TALKS = (*conversations.NAMES, *ms_swift.NAMES)  # formats that hold several answers in a row
ANSWERS_ONLY = (*questions.NAMES, *grounding.NAMES, "easy_r1", "verl")  # formats without responses


class Fitting:
    """The entries of one file as rows of the format `to`, in a file that lies in the folder `home`."""

    def __init__(self, file: DataFile, home: Path, to: str):
        self.to, self.home = to, home
        self.there = Reading(root=file.root, coordinates=file.coordinates)
        self.here = Reading(root=home, headers=self.there.headers)
        self.root = os.path.realpath(file.root)
        self.moves = self.root != os.path.realpath(home)

    def row(self, raws: Sequence[RawRecord], source: str) -> tuple[dict[str, Any], int]:
        """The row of these records (the turns of one conversation), and how many responses it is without.

        Refused where the format cannot hold them: with what it would lose.
        """
        if self.there.coordinates is not None:
            raws = [replace(raw, coordinates=self.there.coordinates) for raw in raws]
        moved = [replace(raw, images=self._moved(raw)) for raw in raws]
        if all(self.to in own.NAMES or (raw.format == self.to and raw.shape) for raw in raws):
            row = write_row(moved, self.to)
            if self._restores(row, moved):
                return row, 0
        records = [make_record(raw, source, source, self.there) for raw in raws]
        problem = None
        for fitted in self._candidates(raws, records):
            row = write_row(fitted, self.to)
            problem, dropped = self._loses(row, raws, records, source)
            if problem is None:
                return row, dropped
        raise Refused("schema", f"the format {self.to} {problem}")

    def _candidates(self, raws: Sequence[RawRecord], records: Sequence[Record]) -> Iterator[list[RawRecord]]:
        """In its own numbers, where the format says which they are; with all boxes in 0-1000."""
        plain = all(raw.coordinates in ms_swift.SYSTEMS.values() and not (raw.placed or raw.refs) for raw in raws)
        if self.to in ms_swift.NAMES and plain:
            yield [replace(raw, format="converted", images=self._moved(raw), shape={}) for raw in raws]
        yield [self._in_norm1000(raw, record) for raw, record in zip(raws, records, strict=True)]

    def _in_norm1000(self, raw: RawRecord, record: Record) -> RawRecord:
        keeps = raw.format in conversations.NAMES and self.to in conversations.NAMES
        silent = self.to in ANSWERS_ONLY and record.response is not None and not record.cot  # who then says it?
        alone = raw.turns > 1 and self.to not in TALKS
        if alone and not raw.targets and self.to not in own.NAMES:
            raise Refused("box", "the answer holds no box")
        return replace(
            raw,
            format="univg_fast" if self.to in own.NAMES else "converted",
            images=self._moved(raw),
            question=fill_raw(raw, self.there)[0],
            response=record.response,
            targets=tuple(RawTarget(target.box, target.image, target.label) for target in record.targets),
            coordinates="norm1000",
            uid=f"{raw.uid}.{raw.turn}" if alone and raw.uid is not None else raw.uid,
            cot=False if silent else raw.cot,
            placed=(),
            refs=(),
            shape={key: raw.shape[key] for key in ("head", "turns") if keeps and key in raw.shape},
        )

    def _moved(self, raw: RawRecord) -> tuple[str, ...]:
        """Its images' paths, relative ones from the new file's folder on."""
        if not self.moves:
            return raw.images
        home = os.path.realpath(self.home)
        return tuple(
            path if os.path.isabs(path) else os.path.relpath(os.path.join(self.root, path), home) for path in raw.images
        )

    def _restores(self, row: dict[str, Any], raws: Sequence[RawRecord]) -> bool:
        """Whether a row says to the letter what these records do."""
        try:
            back = read_row(row, self.home)
        except Refused:
            return False
        plain = [
            [replace(raw, images=tuple(map(os.path.normpath, raw.images))) for raw in some] for some in (raws, back)
        ]
        return plain[0] == plain[1]

    def _loses(
        self, row: dict[str, Any], raws: Sequence[RawRecord], records: Sequence[Record], source: str
    ) -> tuple[str | None, int]:
        """What a row does not say as the records do (None: nothing), and how many responses it is without."""
        try:
            back = read_row(row, self.home)
            again = [make_record(raw, source, source, self.here) for raw in back]
        except Refused as error:
            return f"cannot hold it: {error.problem}", 0
        if len(again) != len(records):
            return f"would make {len(again)} records of {len(records)}", 0
        for raw, other, record, read in zip(raws, back, records, again, strict=True):
            if lost := [name for name, same in self._compared(raw, other, record, read) if not same]:
                return f"does not keep {', '.join(lost)}", 0
        return None, sum(a.response is not None and b.response is None for a, b in zip(records, again, strict=True))

    def _compared(self, raw: RawRecord, back: RawRecord, record: Record, read: Record) -> Iterator[tuple[str, bool]]:
        """Each part of a record, and whether it came back."""
        dropped = read.response is None and self.to in ANSWERS_ONLY
        wanted, found = record.targets, read.targets
        yield "the images", _paths(raw, self.there) == _paths(back, self.here)
        yield "the question", record.question == read.question
        yield "the boxes", [t.box for t in wanted] == [t.box for t in found]
        yield "the image of a box", _holders(record) == _holders(read)
        yield "a label", [t.label for t in wanted] == [t.label for t in found]
        yield "the response", dropped or record.response == read.response
        yield "whether it reasons (cot)", record.cot == read.cot
        told = raw.answer_style is not None or not dropped  # the style of a response goes with it
        yield "answer_style", not told or record.answer_style == read.answer_style
        yield "id", raw.uid is None or record.uid == read.uid
        yield "task", record.task == read.task
        for key, value in raw.extra.items():
            yield f"the key {key}", value is None or back.extra.get(key) == value


def _holders(record: Record) -> list[int | None]:
    return [0 if len(record.images) == 1 else target.image for target in record.targets]


def _paths(raw: RawRecord, reading: Reading) -> list[str]:
    return [os.path.normpath(path) for path in image_paths(raw, Path(os.path.realpath(reading.root)))]
