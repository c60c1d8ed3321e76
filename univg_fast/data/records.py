"""Entries of data files to records: images resolved, boxes 0-1000, marks and instructions taken off; or Refused.

The formats themselves are read in univg_fast/data/formats; what is common to all of them is done here and nowhere else.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from univg_fast.structs import BadRecord, Record, Target

from .answers import only_boxes, style_of
from .boxtext import TextBox, in_tokens, placed, rewrite
from .coordinates import Size, rescaled, smart_resize, to_norm1000
from .entries import ENTRY_KEYS
from .errors import Refused
from .formats import RawRecord, RawTarget, conversations, read_row
from .formats.ms_swift import BBOX, REF
from .formats.raw import MARK
from .images import Header, Headers, Known
from .prompts import split_instruction
from .taught import taught

TEXTS = (*conversations.NAMES, "alpaca")  # formats whose boxes are those of the answers' words


@dataclass(frozen=True)
class Reading:
    """How a file's entries are understood; `coordinates`, `answer_style` and `cot` win over what a row says."""

    root: Path  # relative image paths start here
    coordinates: str | None = None
    answer_style: str | None = None
    cot: bool | None = None  # whether prompts ask for reasoning
    name_images: bool = False  # answers name the image of their box, where it is known (taught.py)
    learned: bool = True  # responses are; else records have none
    exif: str = "ignore"
    min_pixels: int = 3136  # these three: for boxes in pixels of the resized image
    max_pixels: int = 401408
    factor: int = 28
    headers: Known = field(default_factory=Headers, compare=False)


def read_records(
    path: str | Path, image_root: str | Path | None = None, **options: Any
) -> tuple[list[Record], list[BadRecord]]:
    """Read one file into memory. Relative image paths start at `image_root`, or at the file's folder.

    Every image is opened far enough to read its header; a damaged body shows when it is decoded. Each BadRecord's
    message begins with "path:line". `options`: those of a data entry (coordinates, answer_style, cot) and of
    `scan` (exif, min_pixels …). ValueError if there is no such file, or for an entry's value that is none.
    """
    from .scan import scan  # scan builds on this module

    entry = {key: options.pop(key) for key in ENTRY_KEYS if key in options}
    records, report = scan([{"path": str(path)} | entry], image_root, **options)
    return list(records), list(report.bad)


def parse_record(row: Any, source: str, root: Path, default_uid: str) -> Record:
    """The record of a decoded entry that holds one; Refused says what is wrong with it."""
    raws = list(usable(read_row(row, root)))
    return make_record(raws[0], source, default_uid, Reading(root))


def usable(raws: list[RawRecord]) -> Iterator[RawRecord]:
    """Of a conversation with several answers those with a box; Refused where none has one."""
    if len(raws) > 1 and not any(raw.targets for raw in raws):
        raise Refused("box", "no answer of the conversation holds a box")
    yield from (raw for raw in raws if raw.targets or raw.turns == 1)


def image_paths(raw: RawRecord, root: Path) -> tuple[str, ...]:
    """Absolute paths of a record's images."""
    start = str(root) if root.is_absolute() else os.path.join(os.getcwd(), root)
    return tuple(os.path.join(start, image.removeprefix("./")) for image in raw.images)


def make_record(raw: RawRecord, source: str, default_uid: str, reading: Reading) -> Record:
    """A raw record to a Record. Headers of images are read where its boxes are in pixels; Refused as for an entry."""
    return read_record(raw, source, default_uid, reading)[0]


def read_record(raw: RawRecord, source: str, default_uid: str, reading: Reading) -> tuple[Record, str | None]:
    """The same, and to what form its response was rewritten, where it was."""
    images = image_paths(raw, reading.root)
    system = reading.coordinates or raw.coordinates
    frame = _Frame(images, system, reading)
    targets = _targets(raw, frame)
    text, response = fill(raw, frame)
    question, told = split_instruction(text.replace(MARK, ""))
    if not question:
        raise Refused("schema", "the question is empty")
    told = next((said for said in (reading.cot, raw.cot) if said is not None), told)
    cot = (response is None or "<think>" in response) if told is None else told
    if reading.cot and reading.learned and response is not None and "<think>" not in response:
        raise Refused("schema", "cot: true, but the response to learn has no <think>")
    uid = default_uid if raw.uid is None else str(raw.uid)
    style = reading.answer_style or raw.answer_style or style_of(response)
    record = Record(
        uid=f"{uid}.{raw.turn}" if raw.turns > 1 else uid,
        source=source,
        images=images,
        question=question,
        targets=targets,
        response=response,
        task="unknown" if raw.task is None else str(raw.task),
        cot=cot,
        answer_style=style,
        extra=raw.extra,
    )
    record, form = taught(record, reading.name_images)
    return (record, form) if reading.learned else (replace(record, response=None), None)


def _targets(raw: RawRecord, frame: _Frame) -> tuple[Target, ...]:
    """The boxes of a raw record, 0-1000; none where its answer is a sentence with numbers that are no box of it."""
    try:
        return tuple(Target(frame.norm1000(t.box, t.image), t.image, t.label) for t in raw.targets)
    except Refused:  # an image
        raise
    except ValueError as error:
        if raw.format in TEXTS and raw.response and "<answer>" not in raw.response and not only_boxes(raw.response):
            return ()
        raise Refused("box", f"{'answer' if raw.response is None else 'the answer'}: {error}") from None


def fill_raw(raw: RawRecord, reading: Reading) -> tuple[str, str | None]:
    """Question (with its marks) and response of a raw record, names and boxes filled in, all boxes counted 0-1000."""
    return fill(raw, _Frame(image_paths(raw, reading.root), reading.coordinates or raw.coordinates, reading))


def fill(raw: RawRecord, frame: _Frame) -> tuple[str, str | None]:
    """Question and response with names and boxes in the places kept for them, all boxes counted 0-1000."""
    texts = [raw.question] if raw.response is None else [raw.question, raw.response.strip()]
    bboxes, refs = iter(raw.placed), iter(raw.refs)
    done = []
    for text, only_tokens in zip(texts, (True, False), strict=False):
        if frame.system != "norm1000":
            boxes = placed(text, len(raw.images), () if only_tokens else [t.image for t in raw.targets])
            text = rewrite(text, in_tokens(text, boxes) if only_tokens else boxes, frame.respelled)
        if raw.refs and REF in text:
            first, *others = text.split(REF)
            text = first + "".join(_ref(next(refs, None)) + other for other in others)
        if raw.placed and BBOX in text:
            first, *others = text.split(BBOX)
            text = first + "".join(_token_box(next(bboxes, None), frame) + other for other in others)
        done.append(text)
    return done[0], done[1] if len(done) == 2 else None


class _Frame:
    """The images that a record's numbers belong to."""

    def __init__(self, images: tuple[str, ...], system: str, reading: Reading):
        self.images, self.system, self.reading = images, system, reading

    def norm1000(self, box: tuple[float, ...], image: int | None) -> tuple[int, int, int, int]:
        """0-1000 of the box's image; ValueError for a box that is none, or whose image is not known and matters."""
        if self.system in ("norm1", "norm1000"):
            return to_norm1000(box, self.system)
        size = self._size(image)
        return to_norm1000(box, self.system, size, self._resized(size))

    def respelled(self, box: TextBox) -> tuple[int, int, int, int]:
        """A box of a text in 0-1000; one that is none of its image is out of it in 0-1000, too."""
        try:
            return self.norm1000(box.numbers, box.image)
        except Refused:  # an image
            raise
        except ValueError:
            size = None if self.system in ("norm1", "norm1000") else self._size(box.image)
            return rescaled(box.numbers, self.system, size, None if size is None else self._resized(size))

    def _size(self, image: int | None) -> Size:
        headers = [self.reading.headers[path] for path in (self.images if image is None else [self.images[image]])]
        bad = next((header for header in headers if isinstance(header, Refused)), None)
        if bad is not None:
            raise bad
        sizes = {header.shown(self.reading.exif) for header in headers if isinstance(header, Header)}
        if len(sizes) > 1:
            raise ValueError(f"boxes in pixels of {len(sizes)} sizes of images: which image does each belong to?")
        return sizes.pop()

    def _resized(self, size: Size) -> Size | None:
        reading = self.reading
        if self.system != "resized":
            return None
        return smart_resize(size, reading.factor, reading.min_pixels, reading.max_pixels)


def _ref(name: str | None) -> str:
    return REF if name is None else f"<|object_ref_start|>{name}<|object_ref_end|>"


def _token_box(target: RawTarget | None, frame: _Frame) -> str:
    if target is None:
        return BBOX
    try:
        x1, y1, x2, y2 = frame.norm1000(target.box, target.image)
    except ValueError as error:
        raise Refused("box", f"objects.bbox: {error}") from None
    return f"<|box_start|>({x1},{y1}),({x2},{y2})<|box_end|>"
