"""ms-swift's grounding format.

    {"messages": [{"role": "user", "content": "<image><image>Find the <ref-object>"}, {"role": "assistant", "content":
     "<bbox>"}], "images": [paths], "objects": {"ref": [names], "bbox": [[x1, y1, x2, y2], ...], "bbox_type": "real",
     "image_id": [0-based index for each box]}}

`<ref-object>` and `<bbox>` stand for the entries of "ref" and "bbox", in reading order. "bbox_type": real (pixels),
norm1 or norm1000; "image_id": 0 where it is missing. Targets are the boxes of the answer; where there is none (files
for GRPO), those that the question leaves.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from univg_fast.data.errors import Refused

from .conversations import HUMAN, MODEL, answered, marked
from .raw import (
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
    """One record of one question; Refused says what is wrong."""
    images = images_of(row, "images")
    head, question, response = _said(row["messages"])
    check_marks([question], images, optional=True)
    refs, placed, system = _objects(row["objects"], len(images))
    if (question + (response or "")).count(BBOX) > len(placed):
        raise Refused("count", f"objects: expected a bbox for each {BBOX}, got {len(placed)} of them")
    in_question = question.count(BBOX)
    targets = placed[in_question:]
    if response is not None:
        targets = placed[in_question : in_question + response.count(BBOX)] or answered(response, None, len(images))
    shape: dict[str, Any] = {"objects": row["objects"], "key": task_key(row)} | ({"head": head} if head else {})
    shape |= {"one_image": True} if isinstance(row["images"], str) else {}
    return [
        RawRecord(
            format="ms_swift",
            images=images,
            question=question,
            targets=targets,
            coordinates=system,
            response=response,
            uid=row.get("id"),
            task=row.get(task_key(row)),
            cot=cot_of(row),
            placed=placed,
            refs=refs,
            extra=rest(row, {"messages", "images", "objects", "id", "cot", task_key(row)}),
            shape=shape,
        )
    ]


def write(records: Sequence[RawRecord], name: str) -> dict[str, Any]:
    """The row of one record; its boxes in the system that they have."""
    (record,) = records
    same = record.format == "ms_swift"
    question = record.question if same else marked(record)
    messages = [*(record.shape.get("head", ()) if same else ()), {"role": "user", "content": question}]
    if record.response is not None:
        messages.append({"role": "assistant", "content": record.response})
    row = {**record.extra, "messages": messages, "images": list(record.images)}
    row |= {"images": record.images[0]} if same and record.shape.get("one_image") else {}
    row["objects"] = record.shape["objects"] if same else objects_of(record)
    told = {"id": record.uid, record.shape.get("key", "task") if same else "task": record.task, "cot": record.cot}
    return row | {key: value for key, value in told.items() if value is not None}


def objects_of(record: RawRecord) -> dict[str, Any]:
    """The "objects" of a record from another format."""
    names = {system: name for name, system in SYSTEMS.items()}
    if record.coordinates not in names:
        raise Refused("schema", f"ms_swift: expected coordinates of {', '.join(names)}, got {record.coordinates}")
    objects: dict[str, Any] = {
        "ref": [target.label for target in record.targets if target.label is not None],
        "bbox": [list(target.box) for target in record.targets],
        "bbox_type": names[record.coordinates],
    }
    if all(target.image is not None for target in record.targets):
        objects["image_id"] = [target.image for target in record.targets]
    return objects


def _said(messages: Any) -> tuple[list[dict[str, Any]], str, str | None]:
    """(system turns, question, response); files for GRPO end with the question."""
    if not isinstance(messages, list) or not all(isinstance(turn, dict) for turn in messages):
        raise Refused("schema", f"messages: expected a list of turns, got {brief(messages)}")
    head = [turn for turn in messages if turn.get("role") == "system"]
    said = messages[len(head) :]
    speakers = [turn.get("role") for turn in said]
    good = len(said) in (1, 2) and speakers[0] in HUMAN and (len(said) == 1 or speakers[1] in MODEL)
    if not good:
        raise Refused(
            "schema", f"messages: expected a user turn and at most one of the assistant, got {brief(speakers)}"
        )
    texts = [turn.get("content") for turn in said]
    if not all(isinstance(text, str) and text.strip() for text in texts) or any(len(turn) != 2 for turn in said):
        raise Refused("schema", "messages: expected role and a non-empty text as content")
    return head, texts[0], texts[1] if len(texts) == 2 else None


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
