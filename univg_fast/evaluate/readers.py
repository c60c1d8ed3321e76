"""Entries of a benchmark's file to items: what can be scored is kept, whatever else is wrong with an entry."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from univg_fast.data.errors import Refused
from univg_fast.data.formats import grounding, read_row
from univg_fast.data.formats.questions import holder
from univg_fast.data.formats.raw import is_int
from univg_fast.data.images import Header, Known
from univg_fast.data.records import Reading, read_record, usable

from .items import UNKNOWN, Item, Truth, box_of, item_of

Read = Callable[[dict[str, Any], str, Reading], list[Item]]  # (entry, place, how it is understood)
REFERRED = "Output the bounding box in the image corresponding to the instruction: {}."


def mig_bench(entry: dict[str, Any], place: str, reading: Reading) -> list[Item]:
    """The answer counts as it is written, also where the rest of the entry is damaged."""
    task, question = entry.get("task"), entry.get("question")
    images = entry.get("images", entry.get("image"))
    images = [images] if isinstance(images, str) else images
    paths = images if isinstance(images, list) and all(isinstance(path, str) for path in images) else []
    question = question if isinstance(question, str) else ""
    box, problem = box_of(entry.get("answer")), None
    if box is None:
        problem = f"answer: expected four numbers, got {str(entry.get('answer'))[:80]}"
    elif not paths or not question:
        problem = "images: expected a list of paths" if not paths else "question: expected a text"
    where = holder(entry, question, paths) if paths else None
    return [
        Item(
            uid=_uid(entry),
            source=place,
            task=task if isinstance(task, str) else UNKNOWN,
            images=_absolute(paths, reading.root),
            question=question,
            truths=(Truth(box, where),) if box else (),
            problem=problem,
        )
    ]


def zero_shot(entry: dict[str, Any], place: str, reading: Reading) -> list[Item]:
    """LISA, LLMSeg, ReVOS, ReasonVOS: pixels of the file over the size of the target's image."""
    name = grounding.recognise(entry)
    try:
        if name is None:
            raise Refused("schema", f"expected the keys of one of {', '.join(grounding.KEYS)}")
        (raw,) = grounding.read(entry, reading.root)
    except Refused as error:
        return [Item(_uid(entry), place, UNKNOWN, problem=error.problem)]
    target, images = raw.targets[0], _absolute(raw.images, reading.root)
    if box_of(target.box) is None:
        return [Item(_uid(entry), place, UNKNOWN, images, raw.question, problem=f"its box is {list(target.box)}"[:200])]
    pixels = tuple(map(int, target.box)) if name in ("reasonvos", "revos") else target.box  # as the scripts do
    size, problem = _size(entry, images[target.image or 0], reading.headers)
    truths = (Truth(_over(pixels, size), target.image),) if size else ()
    return [Item(_uid(entry), place, UNKNOWN, images, raw.question, truths, problem=problem)]


def refcoco(entry: dict[str, Any], place: str, reading: Reading) -> list[Item]:
    """{"image", "bbox": [x, y, width, height] px, "answer": an expression or several}: an item for each of them."""
    image, box, said = entry.get("image", entry.get("file_name")), box_of(entry.get("bbox")), entry.get("answer")
    texts = said if isinstance(said, list) and said and all(isinstance(text, str) for text in said) else [said]
    problem = None
    images: tuple[str, ...] = ()
    truths: tuple[Truth, ...] = ()
    if not isinstance(image, str) or box is None or not isinstance(texts[0], str):
        problem = "expected image (a path), bbox [x, y, width, height] and answer (a text, or several)"
    else:
        images = _absolute([image], reading.root)
        size, problem = _size(entry, images[0], reading.headers)
        if size:
            x, y, width, height = box
            truths = (Truth(_over((x, y, x + width, y + height), size), 0),)
    uid = _uid(entry)
    many = len(texts) > 1
    return [
        Item(
            f"{uid}.{k}" if many and uid else uid,
            place,
            UNKNOWN,
            images,
            REFERRED.format(text),
            truths,
            problem=problem,
        )
        for k, text in enumerate(texts)
    ]


def records(entry: dict[str, Any], place: str, reading: Reading) -> list[Item]:
    """Any format of docs/data.md, several targets of a record included; the record is the trainer's own."""
    items: list[Item] = []
    file, _, line = place.rpartition(":")
    try:
        for raw in usable(read_row(entry, reading.root)):
            items.append(item_of(read_record(raw, place, f"{Path(file).stem}:{line}", reading)[0]))
    except Refused as error:
        task = entry.get("task", entry.get("type"))
        items.append(Item(_uid(entry), place, task if isinstance(task, str) else UNKNOWN, problem=error.problem))
    return items


def _uid(entry: dict[str, Any]) -> str:
    """The entry's own id; "" where it has none."""
    for key in ("uid", "id", "question_id"):
        value = entry.get(key)
        if isinstance(value, str) and value or is_int(value):
            return str(value)
    return ""


def _absolute(paths: Any, root: Path) -> tuple[str, ...]:
    return tuple(os.path.join(root, path.removeprefix("./")) for path in paths)


def _size(entry: dict[str, Any], image: str, headers: Known) -> tuple[tuple[int, int] | None, str | None]:
    """(width, height) of an image, by its header; where it cannot be opened by the entry's width and height."""
    header = headers[image]
    if isinstance(header, Header):
        return header.size, None
    for names in (("width", "height"), ("image_width", "image_height")):
        width, height = (entry.get(name) for name in names)
        if isinstance(width, int) and isinstance(height, int) and width > 0 and height > 0:
            return (width, height), None
    return None, header.problem


def _over(box: tuple[float, ...], size: tuple[int, int]) -> tuple[float, ...]:
    return box[0] / size[0], box[1] / size[1], box[2] / size[0], box[3] / size[1]
