"""ms-swift's grounding format.

    {"messages": [{"role": "user", "content": "<image><image>Find the <ref-object>"}, {"role": "assistant", "content":
     "<bbox>"}], "images": [paths], "objects": {"ref": [names], "bbox": [[x1, y1, x2, y2], ...], "bbox_type": "real",
     "image_id": [0-based index for each box]}}

`<ref-object>` and `<bbox>` stand for the entries of "ref" and "bbox", in reading order. "bbox_type": real (pixels),
norm1 or norm1000; "image_id": 0 where it is missing. Each answer of several turns is a record. Targets are the boxes of
the answer; where there is none (files for GRPO), those that the question leaves. An image may be {"path": …}.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from univg_fast.data.errors import Refused

from .conversations import HUMAN, MODEL, answered, marked
from .raw import (
    MARK,
    RawRecord,
    RawTarget,
    brief,
    check_marks,
    cot_of,
    images_of,
    is_int,
    numbers_of,
    rest,
    task_key,
)

NAMES = ("ms_swift",)
SYSTEMS = {"real": "pixel", "norm1": "norm1", "norm1000": "norm1000"}
BBOX, REF = "<bbox>", "<ref-object>"


def recognise(row: dict[str, Any]) -> str | None:
    return "ms_swift" if row.get("objects") is not None and "messages" in row else None


def read(row: dict[str, Any], root: Path) -> list[RawRecord]:
    """A record for each answer, or for the question that ends the row; Refused says what is wrong."""
    images = _images(row)
    head, said = _said(row["messages"])
    check_marks([question for question, _ in said], images, optional=True)
    refs, boxes, system = _objects(row["objects"], len(images))
    if sum(_count(turn, BBOX) for turn in said) > len(boxes):
        raise Refused("count", f"objects: expected a bbox for each {BBOX}, got {len(boxes)} of them")
    shape: dict[str, Any] = {"objects": row["objects"], "key": task_key(row)} | ({"head": head} if head else {})
    shape |= {"images": row["images"]} if row["images"] != list(images) else {}
    told = len(images) == 1 or bool(row["objects"].get("image_id"))  # the file says which image a box belongs to
    records, shown = [], 0
    for turn, (question, response) in enumerate(said):
        last = turn == len(said) - 1
        shown = shown + question.count(MARK) or len(images)
        asked, named = question.count(BBOX), _count((question, response), REF)
        answer, used = _answer(response, boxes[asked:], shown, told)
        used += asked
        if any((target.image or 0) >= shown for target in answer):
            raise Refused("schema", f"objects.image_id: the {shown} images shown so far do not hold the answer's boxes")
        records.append(
            RawRecord(
                format="ms_swift",
                images=images[:shown],
                question=question,
                targets=answer,
                coordinates=system,
                response=response,
                uid=row.get("id"),
                task=row.get(task_key(row)),
                cot=cot_of(row),
                turn=turn,
                turns=len(said),
                placed=boxes if last else boxes[:used],
                refs=refs if last else refs[:named],
                extra=rest(row, {"messages", "images", "objects", "id", "cot", task_key(row)}),
                shape=shape,
            )
        )
        boxes, refs = boxes[used:], refs[named:]
    return records


def write(records: Sequence[RawRecord], name: str) -> dict[str, Any]:
    """The row of one record, or of the turns of a conversation; boxes in the system that they have."""
    first, last, same = records[0], records[-1], records[0].format == "ms_swift"
    shape = first.shape if same else {}
    messages, shown = [*first.shape.get("head", ())], 0
    for record in records:
        question = record.question if same else marked(record, shown)
        messages.append({"role": "user", "content": question})
        messages += [] if record.response is None else [{"role": "assistant", "content": record.response}]
        shown = len(record.images)
    row = {**first.extra, "messages": messages, "images": _spelled(shape.get("images"), last.images)}
    row["objects"] = shape["objects"] if "objects" in shape else objects_of(records)
    told = {"id": first.uid, shape.get("key", "task"): first.task, "cot": first.cot}
    return row | {key: value for key, value in told.items() if value is not None}


def objects_of(records: Sequence[RawRecord]) -> dict[str, Any]:
    """The "objects" of records from another format."""
    names = {system: name for name, system in SYSTEMS.items()}
    (system,) = {record.coordinates for record in records}
    if system not in names:
        raise Refused("schema", f"ms_swift: expected coordinates of {', '.join(names)}, got {system}")
    targets = [target for record in records for target in record.targets]
    objects: dict[str, Any] = {
        "ref": [target.label for target in targets if target.label is not None],
        "bbox": [list(target.box) for target in targets],
        "bbox_type": names[system],
    }
    holders = [0 if len(record.images) == 1 else target.image for record in records for target in record.targets]
    if None in holders:  # where nothing is said, ms-swift takes the first image
        raise Refused("schema", "ms_swift needs the image of each box, and the record does not tell it")
    return objects | {"image_id": holders}


def _count(turn: tuple[str, str | None], mark: str) -> int:
    return sum(text.count(mark) for text in turn if text is not None)


def _answer(
    response: str | None, boxes: tuple[RawTarget, ...], num_images: int, told: bool
) -> tuple[tuple[RawTarget, ...], int]:
    """The boxes of an answer, and how many of those of the objects they are.

    Boxes that stand in its text are the next of the objects, if these are the same and say (`told`) whose they are.
    """
    if response is None or BBOX in response:
        given = boxes if response is None else boxes[: response.count(BBOX)]
        return given, len(given)
    written = answered(response, None, num_images)
    given = boxes[: len(written)]
    same = told and [target.box for target in given] == [target.box for target in written]
    return (given, len(given)) if same else (written, 0)


def _images(row: dict[str, Any]) -> tuple[str, ...]:
    """The paths; an image that is a mapping has one, and no bytes."""
    cells = row.get("images")
    for cell in cells if isinstance(cells, list) else ():
        if isinstance(cell, dict) and cell.get("bytes") is not None:
            raise Refused("schema", "images: bytes of images are read from parquet, in JSON expected a path")
    paths = [c.get("path") if isinstance(c, dict) else c for c in cells] if isinstance(cells, list) else cells
    return images_of(row | {"images": paths}, "images")


def _spelled(cells: Any, images: Sequence[str]) -> Any:
    """The paths as the file had them: one alone, or in mappings."""
    if isinstance(cells, list) and len(cells) == len(images):
        return [
            cell | {"path": path} if isinstance(cell, dict) else path for cell, path in zip(cells, images, strict=True)
        ]
    return images[0] if isinstance(cells, str) else list(images)


def _said(messages: Any) -> tuple[list[dict[str, Any]], list[tuple[str, str | None]]]:
    """(system turns, questions and responses); files for GRPO end with a question."""
    if not isinstance(messages, list) or not all(isinstance(turn, dict) for turn in messages):
        raise Refused("schema", f"messages: expected a list of turns, got {brief(messages)}")
    start = next((i for i, turn in enumerate(messages) if turn.get("role") != "system"), len(messages))
    said = messages[start:]
    speakers = [turn.get("role") for turn in said]
    if not said or not all(who in (MODEL if i % 2 else HUMAN) for i, who in enumerate(speakers)):
        problem = f"messages: expected turns of user and assistant, one after the other, got {brief(speakers)}"
        raise Refused("schema", problem)
    texts = [turn.get("content") for turn in said]
    if not all(isinstance(text, str) and text.strip() for text in texts) or any(len(turn) != 2 for turn in said):
        raise Refused("schema", "messages: expected role and a non-empty text as content")
    texts += [None] * (len(texts) % 2)
    return messages[:start], list(zip(texts[::2], texts[1::2], strict=True))


def _objects(objects: Any, num_images: int) -> tuple[tuple[str, ...], tuple[RawTarget, ...], str]:
    """(names, boxes, system of the numbers)."""
    if not isinstance(objects, dict):
        raise Refused("schema", f"objects: expected ref and bbox, got {brief(objects)}")
    refs, boxes = objects.get("ref") or [], objects.get("bbox") or []
    if not isinstance(refs, list) or not all(isinstance(ref, str) for ref in refs) or not isinstance(boxes, list):
        raise Refused("schema", f"objects: expected lists of names and boxes, got {brief(objects)}")
    kind = objects.get("bbox_type") or "real"
    if not isinstance(kind, str) or kind not in SYSTEMS:
        raise Refused("schema", f"objects.bbox_type: expected one of {', '.join(SYSTEMS)}, got {brief(kind)}")
    where = objects.get("image_id") or []
    where = where + [0] * (len(boxes) - len(where)) if isinstance(where, list) else [where]  # as ms-swift fills it up
    if len(where) != len(boxes) or not all(is_int(i) and 0 <= i < num_images for i in where):
        problem = f"expected an index from 0 to {num_images - 1} for each of {len(boxes)} boxes, got {brief(where)}"
        raise Refused("schema", f"objects.image_id: {problem}")
    labels = refs if len(refs) == len(boxes) else [None] * len(boxes)
    placed = [RawTarget(numbers_of(box, f"objects.bbox[{i}]"), where[i], labels[i]) for i, box in enumerate(boxes)]
    return tuple(refs), tuple(placed), SYSTEMS[kind]
