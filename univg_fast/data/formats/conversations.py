"""Conversations over images: UniVG-R1's stage 1, MGrounding-630k, VLM-R1 and any other sharegpt file.

    {"id", "images": [paths], "conversations": [{"from": "human", "value"}, {"from": "gpt", "value"}, ...], "type"}

`messages` with role and content is the same; VLM-R1 writes "image", a path or a list, and its answers may be lists of
numbers. A conversation with several answers gives a record for each: its question, and the images shown so far. Boxes
stand in the answers' text.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from univg_fast.data.answers import answer_span
from univg_fast.data.boxtext import boxes_in
from univg_fast.data.errors import Refused

from .raw import (
    MARK,
    TOLD,
    RawRecord,
    RawTarget,
    brief,
    check_marks,
    cot_of,
    images_key_of,
    images_of,
    numbers_of,
    rest,
    task_key,
    told_by,
    told_of_target,
    with_told,
)

NAMES = ("univg_r1_stage1", "mgrounding", "vlm_r1", "sharegpt")
HUMAN, MODEL = ("human", "user"), ("gpt", "assistant")
TAGS = ("<think>", "<answer>", "</answer>")
PLAIN_TURNS = [{"from": "human"}, {"from": "gpt"}]


def recognise(row: dict[str, Any]) -> str | None:
    """The format's name, or None. What the answers look like tells the four apart."""
    turns = row.get("conversations", row.get("messages"))
    if turns is None or row.get("objects") is not None:
        return None
    if "image" in row and "images" not in row and "conversations" in row:
        return "vlm_r1"
    said = [turn for turn in turns if isinstance(turn, dict)] if isinstance(turns, list) else []
    answers = [text for turn in said if _speaks(turn, MODEL) and isinstance(text := _text(turn), str)]
    if any(tag in text for text in answers for tag in TAGS):
        return "univg_r1_stage1"
    return "mgrounding" if len(answers) > 1 or any("<|box_start|>" in text for text in answers) else "sharegpt"


def read(row: dict[str, Any], root: Path) -> list[RawRecord]:
    """A record for each answer; Refused says what is wrong."""
    name = recognise(row) or "sharegpt"
    key = "conversations" if "conversations" in row else "messages"
    head, said, lists = _turns(row[key], name == "vlm_r1")
    images_key = images_key_of(row)
    images = images_of(row, images_key)
    check_marks([_text(turn) for turn in said[::2]], images, optional=name == "vlm_r1")
    known = {key, images_key, "id", "cot", *TOLD, task_key(row)}
    shape: dict[str, Any] = {"keys": [key, images_key, task_key(row)]}
    shape |= {"head": head} if head else {}
    shape |= {"one_image": True} if isinstance(row[images_key], str) else {}
    cot, told = cot_of(row), told_of_target(row, len(images))
    shape |= told
    records, shown = [], 0
    for turn, (human, model) in enumerate(zip(said[::2], said[1::2], strict=True)):
        question, response = _text(human), _text(model)
        shown = shown + question.count(MARK) or len(images)
        bare = [{k: v for k, v in said_by.items() if k not in ("value", "content")} for said_by in (human, model)]
        records.append(
            RawRecord(
                format=name,
                images=images[:shown],
                question=question,
                targets=with_told(answered(response, cot, shown), told),
                coordinates=_system(name, response),
                response=response,
                uid=row.get("id"),
                task=row.get(task_key(row)),
                cot=cot,
                turn=turn,
                turns=len(said) // 2,
                extra=rest(row, known),
                shape=shape
                | ({"turns": bare} if bare != PLAIN_TURNS else {})
                | ({"list": True} if lists[turn] else {}),
            )
        )
    return records


def write(records: Sequence[RawRecord], name: str) -> dict[str, Any]:
    """The row of one conversation from the records of its answers."""
    last, shape, same = records[-1], records[0].shape, records[0].format == name
    turns_key, images_key, task = shape.get(
        "keys", ["conversations", "image" if name == "vlm_r1" else "images", "type"]
    )
    turns, shown = list(shape.get("head", ())), 0
    for record in records:
        if record.response is None:
            raise Refused("schema", f"the format {name} needs a response, and the record has none")
        human, model = record.shape.get("turns", PLAIN_TURNS)
        question = record.question if same else marked(record, shown)
        answer = json.loads(record.response) if same and record.shape.get("list") else record.response
        for said_by, said in ((human, question), (model, answer)):
            turns.append({**said_by, "value" if "from" in said_by else "content": said})
        shown = len(record.images)
    single = shape.get("one_image") if same else name == "vlm_r1" and len(last.images) == 1
    row: dict[str, Any] = {**records[0].extra, turns_key: turns}
    row[images_key] = last.images[0] if single else list(last.images)
    told = {"id": last.uid, task: last.task, "cot": last.cot}
    told |= told_by(records[0], same) if same or len(records) == 1 else {}
    return row | {key: value for key, value in told.items() if value is not None}


def marked(record: RawRecord, shown: int = 0) -> str:
    """The question with an `<image>` mark for each image but those `shown` in turns before; what lacks, in front."""
    return MARK * (len(record.images) - shown - record.question.count(MARK)) + record.question


def answered(response: str, cot: bool | None, num_images: int) -> tuple[RawTarget, ...]:
    """The boxes of an answer: in the <answer> behind its reasoning, or of the whole text where it has no tags.

    Refused where there are tags and no box, or where they do not pair. `cot` False: the tags mean nothing.
    """
    tags = cot is not False and any(tag in response for tag in TAGS)
    text = response
    if tags:
        span = answer_span(response)
        text = "" if span is None else response[slice(*span)]
    elif cot:  # reasoning was promised: a box outside of the tags is none
        return ()
    boxes = boxes_in(text, num_images)
    if tags and not boxes:
        raise Refused("box", "the target has no <answer>(x1,y1),(x2,y2)</answer>")
    return tuple(RawTarget(box.numbers, box.image, box.label) for box in boxes)


def _system(name: str, response: str) -> str:
    """VLM-R1's lists are pixels of the stored image; everything else in this family counts to 1000."""
    pairs = any(response[box.start] == "(" for box in boxes_in(response, 0))
    return "pixel" if name == "vlm_r1" and not pairs else "norm1000"


def _turns(turns: Any, lists: bool) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[bool]]:
    """(system turns, human and model turns in alternation, which answers are lists of numbers: these become text)."""
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise Refused("schema", f"conversations: expected a list of turns, got {brief(turns)}")
    start = next((i for i, turn in enumerate(turns) if _speaker(turn) != "system"), len(turns))
    said = turns[start:]
    sides = [HUMAN if i % 2 == 0 else MODEL for i in range(len(said))]
    if not said or len(said) % 2 or not all(_speaks(t, side) for t, side in zip(said, sides, strict=True)):
        speakers = brief([_speaker(turn) for turn in said])
        raise Refused("schema", f"conversations: expected human and gpt turns, one after the other, got {speakers}")
    listed = [lists and isinstance(_text(turn), list) for turn in said[1::2]]
    for i, turn in enumerate(said[1::2]):
        if listed[i]:
            boxes = _text(turn)
            for box in boxes if boxes and all(isinstance(box, list) for box in boxes) else [boxes]:
                numbers_of(box, "conversations")
            said[2 * i + 1] = turn | {"value" if "value" in turn else "content": json.dumps(boxes)}
    if not all(isinstance(_text(turn), str) and _text(turn).strip() for turn in said):
        raise Refused("schema", "conversations: expected non-empty texts")
    return turns[:start], said, listed


def _speaker(turn: dict[str, Any]) -> Any:
    return turn.get("from", turn.get("role"))


def _speaks(turn: dict[str, Any], names: tuple[str, ...]) -> bool:
    return isinstance(_speaker(turn), str) and _speaker(turn) in names


def _text(turn: dict[str, Any]) -> Any:
    return turn.get("value", turn.get("content"))
