"""A record in words that another format holds, proved by reading them again: nothing is dropped or invented unsaid."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from univg_fast.structs import Record

from .boxtext import MENTION, boxes_in
from .errors import Refused
from .files import DataFile
from .formats import RawRecord, RawTarget, conversations, grounding, ms_swift, own, questions, read_row, write_row
from .records import Reading, fill_raw, image_paths, make_record

TALKS = (*conversations.NAMES, *ms_swift.NAMES)  # formats that hold several answers in a row
STYLED = ("easy_r1", "verl")  # formats that tell the style of an answer they do not hold
ANSWERS_ONLY = (*questions.NAMES, *grounding.NAMES, *STYLED)  # formats without responses
SYSTEM_KEPT = (*TALKS, *own.NAMES, "verl")  # formats with a place for system turns
WORD = re.compile(r"<\|\w+\|>|</?\w+>|(\w+)")  # tokens and tags are none
RESPONSES = "responses left out (the format has none)"
SYSTEM = "system turns left out (the format has none)"
UNUSED = "entries written without boxes of theirs that are no target's (docs/data.md)"
ANEW = "responses written anew: the same words, their boxes in the form of docs/data.md, Answers"


class Fitting:
    """The entries of one file as rows of the format `to`, in a file that lies in the folder `home`."""

    def __init__(self, file: DataFile, home: Path, to: str):
        self.to, self.home = to, home
        self.there = Reading(root=file.root, coordinates=file.coordinates)
        self.here = Reading(root=home, headers=self.there.headers)
        self.root = os.path.realpath(file.root)
        self.moves = self.root != os.path.realpath(home)

    def row(self, raws: Sequence[RawRecord], source: str) -> tuple[dict[str, Any], Counter[str]]:
        """The row of these records (the turns of one conversation), and what of them it is without.

        Refused where the format cannot hold them: with what it would lose.
        """
        if self.there.coordinates is not None:
            raws = [replace(raw, coordinates=self.there.coordinates) for raw in raws]
        moved = [replace(raw, images=self._moved(raw)) for raw in raws]
        if all(self.to in own.NAMES or (raw.format == self.to and raw.shape) for raw in raws):
            row = write_row(moved, self.to)
            if self._restores(row, moved):
                return row, Counter()
        records = [make_record(raw, source, source, self.there) for raw in raws]
        problem = None
        for fitted in self._candidates(raws, records):
            row = write_row(fitted, self.to)
            problem, without = self._loses(row, raws, records, source)
            if problem is None:
                return row, without
        raise Refused("schema", f"the format {self.to} {problem}")

    def _candidates(self, raws: Sequence[RawRecord], records: Sequence[Record]) -> Iterator[list[RawRecord]]:
        """In its own numbers, where the format says which they are; with all boxes in 0-1000; with answers in the form
        that is taught, where this loses no word: it names images, which the spelling of the file may leave open."""
        plain = all(raw.coordinates in ms_swift.SYSTEMS.values() and not (raw.placed or raw.refs) for raw in raws)
        if self.to in ms_swift.NAMES and plain:
            yield [
                replace(raw, format="converted", images=self._moved(raw), shape=self._shape(raw, False)) for raw in raws
            ]
        fitted = [self._in_norm1000(raw, record) for raw, record in zip(raws, records, strict=True)]
        yield fitted
        taught = [replace(raw, response=record.response) for raw, record in zip(fitted, records, strict=True)]
        if taught != fitted and all(_loses_no_word(a, b) for a, b in zip(fitted, taught, strict=True)):
            yield taught

    def _in_norm1000(self, raw: RawRecord, record: Record) -> RawRecord:
        silent = self.to in ANSWERS_ONLY and record.response is not None and not record.cot  # who then says it?
        alone = raw.turns > 1 and self.to not in TALKS
        if alone and not raw.targets and self.to not in own.NAMES:
            raise Refused("box", "the answer holds no box")
        question, response = fill_raw(raw, self.there)
        return replace(
            raw,
            format="univg_fast" if self.to in own.NAMES else "converted",
            images=self._moved(raw),
            question=question,
            response=response,
            targets=tuple(RawTarget(target.box, target.image, target.label) for target in record.targets),
            coordinates="norm1000",
            uid=f"{raw.uid}.{raw.turn}" if alone and raw.uid is not None else raw.uid,
            cot=False if silent else raw.cot,
            answer_style=record.answer_style if raw.response is None or self.to in STYLED else raw.answer_style,
            placed=(),
            refs=(),
            shape=self._shape(raw, raw.format in conversations.NAMES and self.to in conversations.NAMES),
        )

    def _shape(self, raw: RawRecord, same_turns: bool) -> dict[str, Any]:
        """What of its own spelling another format has a place for: system turns, and further keys of turns."""
        turns = {"turns": raw.shape["turns"]} if same_turns and "turns" in raw.shape else {}
        said = _system_turns(raw) if self.to in SYSTEM_KEPT else []
        if same_turns or not said:
            return turns | ({"head": raw.shape["head"]} if said else {})
        who, what = ("from", "value") if self.to in conversations.NAMES else ("role", "content")
        return {"head": [{who: "system", what: text} for text in said]}

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
    ) -> tuple[str | None, Counter[str]]:
        """What a row does not say as the records do (None: nothing), and what it is allowed to be without."""
        without: Counter[str] = Counter()
        try:
            back = read_row(row, self.home)
            again = [make_record(raw, source, source, self.here) for raw in back]
        except Refused as error:
            return f"cannot hold it: {error.problem}", without
        if len(again) != len(records):
            return f"would make {len(again)} records of {len(records)}", without
        for raw, other, record, read in zip(raws, back, records, again, strict=True):
            if lost := [name for name, same in self._compared(raw, other, record, read) if not same]:
                return f"does not keep {', '.join(lost)}", without
            without[RESPONSES] += record.response is not None and read.response is None
            without[ANEW] += read.response is not None and self._said(raw, self.there) != self._said(other, self.here)
        without[UNUSED] += self.to not in own.NAMES and any(map(_has_more_boxes, raws))
        without[SYSTEM] += 0 if self.to in SYSTEM_KEPT else len(_system_turns(raws[0]))
        return None, without

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
        told = raw.answer_style is not None or not dropped or raw.response is None or self.to in STYLED
        yield "answer_style", not told or record.answer_style == read.answer_style
        yield "id", raw.uid is None or record.uid == read.uid
        yield "task", record.task == read.task
        yield "the system turn", self.to not in SYSTEM_KEPT or _system_turns(raw) == _system_turns(back)
        yield "the keys of a turn", _beside(raw) in ([], _beside(back))
        for key, value in raw.extra.items():
            yield f"the key {key}", value is None or back.extra.get(key) == value

    def _said(self, raw: RawRecord, reading: Reading) -> str | None:
        return fill_raw(raw, reading)[1]


def _loses_no_word(raw: RawRecord, other: RawRecord) -> bool:
    """Whether all words of a response, besides its boxes and the names of images, stand in the other, too."""
    before, after = (_words(raw.response or "", len(raw.images)) for raw in (raw, other))
    return not before - after


def _words(text: str, num_images: int) -> Counter[str]:
    for box in reversed(boxes_in(text, num_images)):
        text = f"{text[: box.start]} {text[box.end :]}"
    return Counter(word[1] for word in WORD.finditer(MENTION.sub(" ", text)) if word[1])


def _system_turns(raw: RawRecord) -> list[Any]:
    """What the system says before a record's question; verl has it in its prompt."""
    turns = _turns(raw, "head") + _turns(raw, "prompt")
    said = [turn for turn in turns if "system" in (turn.get("from"), turn.get("role"))]
    return [turn.get("value", turn.get("content")) for turn in said]


def _has_more_boxes(raw: RawRecord) -> bool:
    """Whether a file tells boxes besides those of targets and texts."""
    if raw.format in grounding.NAMES:
        return len(list(grounding.flat(raw.shape.get(grounding.KEYS[raw.format][2])))) > 4
    marks = (raw.question + (raw.response or "")).count(ms_swift.BBOX)
    written = raw.response is None or ms_swift.BBOX not in raw.response
    return len(raw.placed) > marks + (sum(target in raw.placed for target in raw.targets) if written else 0)


def _beside(raw: RawRecord) -> list[dict[str, Any]]:
    """Keys of a conversation's turns besides who says what."""
    turns = [{k: v for k, v in turn.items() if k not in ("from", "role")} for turn in _turns(raw, "turns")]
    return turns if any(turns) else []


def _turns(raw: RawRecord, key: str) -> list[dict[str, Any]]:
    turns = raw.shape.get(key)
    return [turn for turn in turns if isinstance(turn, dict)] if isinstance(turns, list) else []


def _holders(record: Record) -> list[int | None]:
    return [0 if len(record.images) == 1 else target.image for target in record.targets]


def _paths(raw: RawRecord, reading: Reading) -> list[str]:
    return [os.path.normpath(path) for path in image_paths(raw, Path(os.path.realpath(reading.root)))]
