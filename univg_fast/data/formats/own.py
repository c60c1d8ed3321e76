"""The project's own record format: one JSON object a line, in words that every other format can be put into.

    {"images": [paths], "question": "…", "targets": [{"box": [x1, y1, x2, y2], "image": 0, "label": "…"}],
     "coordinates": "norm1000", "response": "…", "id": "…", "task": "…", "cot": true, "answer_style": "univg_r1"}

Only images, question and targets are required; docs/data.md has the rest. "format" and "shape" remember where a record
came from, so that it can be written back without loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from univg_fast.data.coordinates import SYSTEMS
from univg_fast.data.entries import STYLES
from univg_fast.data.errors import Refused

from .raw import (
    MARK,
    RawRecord,
    RawTarget,
    brief,
    cot_of,
    images_of,
    is_int,
    need,
    numbers_of,
    target_image,
    text_of,
)

NAMES = ("univg_fast",)
KEYS = {"images", "question", "targets", "coordinates", "response", "id", "task", "cot", "answer_style", "turn",
        "turns", "placed", "refs", "extra", "format", "shape"}  # fmt: skip


def recognise(row: dict[str, Any]) -> str | None:
    return "univg_fast" if "targets" in row and "question" in row and "images" in row else None


def read(row: dict[str, Any], root: Path) -> list[RawRecord]:
    """One record; Refused says what is wrong."""
    images, question = images_of(row, "images"), text_of(row, "question")
    turn, turns = (row[key] if row.get(key) is not None else least for key, least in (("turn", 0), ("turns", 1)))
    if not (is_int(turn) and is_int(turns) and 0 <= turn < turns):
        raise Refused("schema", f"turn: expected a number from 0 below turns, got {brief([turn, turns])}")
    marks = question.count(MARK)
    if turns == 1 and marks not in (0, len(images)):
        raise Refused("count", f"expected {len(images)} {MARK} marks, one for each image, or none; got {marks}")
    told: dict[str, Any] = {key: row.get(key) for key in ("response", "answer_style", "coordinates", "format")}
    told["coordinates"] = told["coordinates"] if told["coordinates"] is not None else "norm1000"
    for key, known in (("answer_style", STYLES), ("coordinates", SYSTEMS)):
        if told[key] is not None and told[key] not in known:
            raise Refused("schema", f"{key}: expected one of {', '.join(known)}, got {brief(told[key])}")
    if told["response"] is not None and not isinstance(told["response"], str):
        raise Refused("schema", f"response: expected a text, got {brief(told['response'])}")
    return [
        RawRecord(
            format=str(told["format"] or "univg_fast"),
            images=images,
            question=question,
            targets=_targets(row["targets"], len(images), "targets"),
            coordinates=told["coordinates"],
            response=told["response"],
            uid=row.get("id"),
            task=row.get("task"),
            cot=cot_of(row),
            answer_style=told["answer_style"],
            turn=turn,
            turns=turns,
            placed=_targets(row.get("placed") or [], len(images), "placed"),
            refs=tuple(_strings(row.get("refs") or [])),
            extra=_mapping(row, "extra") | {key: value for key, value in row.items() if key not in KEYS},
            shape=_mapping(row, "shape"),
        )
    ]


def write(records: Sequence[RawRecord], name: str) -> dict[str, Any]:
    """The row of one record: what is at its default is left out."""
    (record,) = records
    row: dict[str, Any] = {"id": record.uid, "task": record.task, "images": list(record.images)}
    row |= {
        "question": record.question,
        "targets": [_target(t) for t in record.targets],
        "coordinates": record.coordinates,
    }
    row |= {"response": record.response, "cot": record.cot, "answer_style": record.answer_style}
    row |= {"turn": record.turn, "turns": record.turns} if record.turns > 1 else {}
    row |= {"placed": [_target(target) for target in record.placed], "refs": list(record.refs)}
    row |= {"extra": record.extra, "shape": record.shape}
    row["format"] = None if record.format == "univg_fast" else record.format
    empty = {key for key in ("placed", "refs", "extra", "shape") if not row[key]}
    return {key: value for key, value in row.items() if value is not None and key not in empty}


def _target(target: RawTarget) -> dict[str, Any]:
    row = {"box": list(target.box), "image": target.image, "label": target.label}
    return {key: value for key, value in row.items() if value is not None}


def _targets(value: Any, num_images: int, name: str) -> tuple[RawTarget, ...]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise Refused("schema", f"{name}: expected a list of objects with box, image and label, got {brief(value)}")
    targets = []
    for i, item in enumerate(value):
        label = item.get("label")
        if label is not None and not isinstance(label, str):
            raise Refused("schema", f"{name}[{i}].label: expected a text, got {brief(label)}")
        box, where = numbers_of(need(item, "box"), f"{name}[{i}].box"), item.get("image")
        targets.append(RawTarget(box, target_image(where, num_images, f"{name}[{i}].image"), label))
    return tuple(targets)


def _strings(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise Refused("schema", f"refs: expected a list of texts, got {brief(value)}")
    return value


def _mapping(row: dict[str, Any], key: str) -> dict[str, Any]:
    value = row.get(key) or {}
    if not isinstance(value, dict):
        raise Refused("schema", f"{key}: expected an object, got {brief(value)}")
    return value
