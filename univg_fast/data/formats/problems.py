"""Rows for RL trainers, as parquet or JSON: EasyR1, verl, and LLaMA-Factory's alpaca for SFT.

    easy_r1  {"problem": "<image>…", "answer": …, "images": [paths]}
    verl     {"prompt": [{"role", "content"}], "images", "reward_model": {"ground_truth": …}, "data_source"}
    alpaca   {"instruction": "<image>…", "input", "output", "images"}

An answer is [x1, y1, x2, y2], a list of those, or a text that holds boxes; read as 0-1000 unless the data entry says
otherwise (`coordinates`). Of easy_r1 and verl, "answer_style" beside these keys, or else such a text, tells the style.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from univg_fast.data.boxtext import boxes_in
from univg_fast.data.entries import STYLES
from univg_fast.data.errors import Refused
from univg_fast.data.prompts import answer_text
from univg_fast.structs import Box, Target

from .conversations import HUMAN, answered, marked
from .raw import (
    TOLD,
    RawRecord,
    RawTarget,
    brief,
    check_marks,
    cot_of,
    images_key_of,
    images_of,
    need,
    numbers_of,
    rest,
    task_key,
    text_of,
    told_by,
    told_of_target,
    with_told,
)

NAMES = ("easy_r1", "verl", "alpaca")
SPELLED = {'"bbox_2d"': "bbox_2d", "<|box_start|>": "box_tokens"}  # what shows the style of a textual answer


def recognise(row: dict[str, Any]) -> str | None:
    if "problem" in row and ("answer" in row or "solution" in row):
        return "easy_r1"
    if "prompt" in row and "reward_model" in row:
        return "verl"
    return "alpaca" if "instruction" in row and "output" in row else None


def read(row: dict[str, Any], root: Path) -> list[RawRecord]:
    """One record; Refused says what is wrong."""
    name = recognise(row) or "easy_r1"
    images_key = images_key_of(row)
    images = images_of(row, images_key)
    shape: dict[str, Any] = {"keys": [images_key, task_key(row)]}
    shape |= {"one_image": True} if isinstance(row[images_key], str) else {}
    told = told_of_target(row, len(images))
    shape |= told | ({"answer_style": row["answer_style"]} if row.get("answer_style") in STYLES else {})
    response = style = None
    known = {images_key, "id", "cot", *TOLD, task_key(row)}
    if name == "alpaca":
        question, response = text_of(row, "instruction"), text_of(row, "output")
        known |= {"instruction", "output", "input"}
        shape |= {"input": row["input"]} if "input" in row else {}
        targets = answered(response, cot_of(row), len(images))
        more = row.get("input")
        question = f"{question}\n{more}" if isinstance(more, str) and more else question
        shape |= {"instruction": row["instruction"]} if question != row["instruction"] else {}
    elif name == "verl":
        question = _prompt(row["prompt"])
        answer = need(row["reward_model"], "ground_truth") if isinstance(row["reward_model"], dict) else None
        targets, style = _targets(answer, len(images)), _style(row, answer)
        known |= {"prompt", "reward_model"}
        shape |= {"prompt": row["prompt"], "reward_model": row["reward_model"]}
    else:
        answer_key = "answer" if "answer" in row else "solution"
        answer = row[answer_key]
        question, targets, style = text_of(row, "problem"), _targets(answer, len(images)), _style(row, answer)
        known, shape = known | {"problem", answer_key}, shape | {"answer": {answer_key: answer}}
    known |= {"answer_style"} if style is not None and "answer_style" in shape else set()
    check_marks([question], images, optional=name != "alpaca")
    return [
        RawRecord(
            format=name,
            images=images,
            question=question,
            targets=with_told(targets, told),
            response=response,
            uid=row.get("id"),
            task=row.get(task_key(row)),
            cot=cot_of(row),
            answer_style=style,
            extra=rest(row, known),
            shape=shape,
        )
    ]


def write(records: Sequence[RawRecord], name: str) -> dict[str, Any]:
    """The row of one record."""
    (record,) = records
    same = record.format == name
    shape = record.shape if same else {}
    images_key, task = shape.get("keys", ["images", "task"])
    row = {**record.extra, images_key: record.images[0] if shape.get("one_image") else list(record.images)}
    if name == "alpaca":
        if record.response is None:
            raise Refused("schema", "the format alpaca needs a response, and the record has none")
        row |= {"instruction": shape.get("instruction", marked(record)), "output": record.response}
        row |= {"input": shape["input"]} if "input" in shape else {}
    elif name == "verl":
        asked = [*record.shape.get("head", ()), {"role": "user", "content": marked(record)}]
        row["prompt"] = shape.get("prompt", asked)
        row["reward_model"] = shape.get("reward_model") or {"style": "rule", "ground_truth": _answer(record)}
    else:
        row |= {"problem": record.question if same else marked(record)}
        row |= shape.get("answer") or {"answer": _answer(record)}
    told = {"id": record.uid, task: record.task, "cot": record.cot} | told_by(record, same)
    if name != "alpaca":
        told["answer_style"] = shape.get("answer_style") if same else _unseen_style(record)
    return row | {key: value for key, value in told.items() if value is not None}


def _prompt(prompt: Any) -> str:
    """The user's text of a list of turns."""
    turns = prompt if isinstance(prompt, list) else []
    texts = [turn.get("content") for turn in turns if isinstance(turn, dict) and turn.get("role") in HUMAN]
    if len(texts) != 1 or not isinstance(texts[0], str):
        raise Refused("schema", f"prompt: expected turns with one text of the user, got {brief(prompt)}")
    return texts[0]


def _answer(record: RawRecord) -> Any:
    """Four numbers; of several boxes a JSON text that names each one's label and image."""
    if not record.targets:
        raise Refused("box", "expected a box to be the answer, and the record has none")
    if len(record.targets) == 1:
        return list(record.targets[0].box)
    return answer_text([Target(_integers(t.box), t.image, t.label) for t in record.targets], "bbox_2d")


def _style(row: dict[str, Any], answer: Any) -> str | None:
    """The style that a row tells of its answers; else that of an answer which is a text in one."""
    if row.get("answer_style") in STYLES:
        return str(row["answer_style"])
    return next((s for mark, s in SPELLED.items() if mark in answer), None) if isinstance(answer, str) else None


def _unseen_style(record: RawRecord) -> str | None:
    """The record's style, where its answer does not show it by itself."""
    seen = _style({}, _answer(record)) or "univg_r1"
    return None if record.answer_style == seen else record.answer_style


def _integers(box: tuple[float, ...]) -> Box:
    x1, y1, x2, y2 = map(int, box)
    return x1, y1, x2, y2


def _targets(answer: Any, num_images: int) -> tuple[RawTarget, ...]:
    if isinstance(answer, str):
        return tuple(RawTarget(box.numbers, box.image, box.label) for box in boxes_in(answer, num_images))
    if isinstance(answer, list) and answer and all(isinstance(box, list) for box in answer):
        return tuple(RawTarget(numbers_of(box, f"answer[{i}]")) for i, box in enumerate(answer))
    return (RawTarget(numbers_of(answer, "answer")),)
