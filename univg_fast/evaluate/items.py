"""What is scored: one entry of a benchmark, with boxes in the units of its protocol. No entry is ever left out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from univg_fast.data.formats.raw import LARGEST, MARK, is_number
from univg_fast.data.jsonfile import Row, read_rows
from univg_fast.data.prompts import split_instruction
from univg_fast.structs import Record, Target

from .overlap import box_fault

UNKNOWN = "unknown"  # the task of an entry that names none


class Protocol(NamedTuple):
    """`unit` of the boxes, in which IoU is computed: thousandths or fractions of an image's width and height. `epsilon`
    is added to the union."""

    name: str
    unit: str
    epsilon: float = 0.0


class Truth(NamedTuple):
    """A box to be found, in the protocol's units; `image` is 0-based, None where the benchmark does not say."""

    box: tuple[float, ...]
    image: int | None = None


@dataclass(frozen=True)
class Item:
    """`problem`: what is wrong with the entry; one without a truth scores 0 and counts. `record`: an entry of the
    trainer's data, which says how it is asked."""

    uid: str
    source: str  # "file:line"
    task: str
    images: tuple[str, ...] = ()  # absolute paths
    question: str = ""
    truths: tuple[Truth, ...] = ()
    cot: bool = True
    problem: str | None = None
    record: Record | None = None
    again_of: str | None = None  # the id, where an entry before it has the same

    @property
    def target_image(self) -> int | None:
        if len(self.images) == 1:
            return 0
        return self.truths[0].image if self.truths else None


def item_of(record: Record) -> Item:
    """A record of the trainer's data, boxes in thousandths."""
    truths = tuple(Truth(target.box, target.image) for target in record.targets)
    problem = None if truths else "it has no box"
    return Item(
        record.uid, record.source, record.task, record.images, record.question, truths, record.cot, problem, record
    )


class Form(NamedTuple):
    """How answers are asked for, where an item's record does not say: docs/data.md has the styles."""

    answer_style: str | None = None
    names_images: bool = False


AS_TOLD = Form()


def record_of(item: Item, form: Form = AS_TOLD) -> Record:
    """What the model is asked. A box that is made here says only which image an answer's box belongs to."""
    if item.record is not None:
        record = replace(item.record, uid=item.uid)
        style = record.answer_style
    else:
        question, _ = split_instruction(item.question.replace(MARK, ""))
        targets = tuple(Target((0, 0, 1000, 1000), truth.image) for truth in item.truths)
        record = Record(item.uid, item.source, item.images, question, targets, task=item.task, cot=item.cot)
        style = form.answer_style or record.answer_style
    return replace(record, answer_style=style, names_images=form.names_images or record.names_images)


def without_reasoning(items: Sequence[Item]) -> list[Item]:
    """The same, asked for boxes alone: an answer needs no tags then."""
    records = [item.record and replace(item.record, cot=False) for item in items]
    return [replace(item, cot=False, record=record) for item, record in zip(items, records, strict=True)]


def entries(path: Path, name: str | None = None) -> Iterator[tuple[str, Any, str | None]]:
    """(place, decoded entry or None, what is wrong with it) of every entry of a JSON list or JSONL file. `name`: what
    places call it, instead of its own.

    ValueError for no file, an empty one, and a list that is cut short: nobody knows how many entries it had.
    """
    empty, name = True, name or path.name
    for number, row in enumerate(read_rows(path)):
        empty = False
        if isinstance(row, Row):
            wrong = None if isinstance(row.value, dict) else f"expected an object, got {str(row.value)[:80]}"
            yield f"{name}:{row.place}", row.value if wrong is None else None, wrong
        elif "the list is cut" in row.message:
            raise ValueError(f"{row.message}; after {number} entries the size of the benchmark is not known")
        else:
            yield f"{name}:{row.source.rpartition(':')[2]}", None, row.message.removeprefix(f"{row.source}: ")
    if empty:
        raise ValueError(f"--data: {path} holds no entries")


def box_of(value: Any) -> tuple[float, ...] | None:
    """Four numbers that a picture can have, or None."""
    good = (
        isinstance(value, list | tuple) and len(value) == 4 and all(is_number(v) and abs(v) <= LARGEST for v in value)
    )
    return tuple(value) if good else None


def truth_problem(item: Item) -> str | None:
    """Why nothing can score on an entry: it has no box, or one without area."""
    if not item.truths:
        return item.problem or "it has no box"
    bad = [truth.box for truth in item.truths if box_fault(truth.box)]
    return f"its box {list(bad[0])} has no area" if bad else None
