"""A question with boxes for an answer: UniVG-R1's stage 2 and MIG-Bench.

stage 2    {"question": "<image><image>…", "answer": [x1, y1, x2, y2], "images": [paths]}, integers 0-1000
MIG-Bench  … and "task", "additional_info", "need_format"; fractions 0-1, or integers 0-1000 in the revised set
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from univg_fast.data.boxtext import MENTION, boxes_in, last_image
from univg_fast.data.errors import Refused

from .conversations import marked
from .raw import (
    TOLD,
    RawRecord,
    RawTarget,
    check_marks,
    cot_of,
    images_key_of,
    images_of,
    is_int,
    need,
    numbers_of,
    rest,
    task_key,
    text_of,
    told_by,
    told_of_target,
    with_told,
)

NAMES = ("univg_r1_stage2", "mig_bench")
# Where MIG-Bench's tasks keep the answer: the k-th image of all tasks of a kind, the one that the question names last,
# or the one that "additional_info" is about.
FIXED_IMAGE = {"view_diff": 1, "refer_grounding": 1, "reasoning": 1, "correspondence": 1, "region": 0}
NAMED_IMAGE = ("common_object", "object_tracking", "multi_view")
INFORMED = "group_grounding"
MIG_TASKS = ("diff", *FIXED_IMAGE, *NAMED_IMAGE, INFORMED)
DEEPEST = 4  # of a mapping in a mapping
NUMBERED = re.compile(r"ima?ge?|picture|frame", re.IGNORECASE)  # keys under which a number is an image's


def recognise(row: dict[str, Any]) -> str | None:
    if "question" not in row:
        return None
    return "mig_bench" if "additional_info" in row or "need_format" in row else "univg_r1_stage2"


def read(row: dict[str, Any], root: Path) -> list[RawRecord]:
    """One record; Refused says what is wrong."""
    name = recognise(row) or "univg_r1_stage2"
    benchmark = name == "mig_bench"
    images_key = images_key_of(row)
    images, question = images_of(row, images_key), text_of(row, "question")
    box = numbers_of(need(row, "answer"), "answer")
    check_marks([question], images, optional=benchmark)
    told = told_of_target(row, len(images))
    where = holder(row, question, images) if benchmark else None
    fraction = benchmark and any(v != int(v) for v in box if abs(v) < 1e9) or benchmark and max(box) <= 1
    shape: dict[str, Any] = {"keys": [images_key, task_key(row)]}
    shape |= {"one_image": True} if isinstance(row[images_key], str) else {}
    shape |= told
    known = {images_key, "question", "answer", "id", "cot", *TOLD, task_key(row)}
    return [
        RawRecord(
            format=name,
            images=images,
            question=question,
            targets=with_told((RawTarget(box, where),), told),
            coordinates="norm1" if fraction else "norm1000",
            uid=row.get("id"),
            task=row.get(task_key(row)),
            cot=cot_of(row),
            extra=rest(row, known),
            shape=shape,
        )
    ]


def holder(row: dict[str, Any], question: str, images: Sequence[str]) -> int | None:
    """The 0-based image that holds the answer of a MIG-Bench task, where the entry says."""
    task, number = row.get("task"), len(images)
    if not isinstance(task, str):
        return None
    if task in FIXED_IMAGE:
        return FIXED_IMAGE[task] if FIXED_IMAGE[task] < number else None
    if task == INFORMED:
        return informed(row.get("additional_info"), images)
    return last_image(question, number) if task in NAMED_IMAGE else None


def informed(info: Any, images: Sequence[str]) -> int | None:
    """The one image that additional information is about: by words ("Image-2"), or by its path or file name.

    None where it names none or several of them. A number alone says little, since some count from 0 and some from 1: it
    counts where only one of both can be, which is 0, or the number of images.
    """
    named: set[int | None] = set()
    for key, said in _said(info):
        if isinstance(said, str):
            words = [last_image(mention[0], len(images)) for mention in MENTION.finditer(said)]
            named.update([*words, *(box.image for box in boxes_in(said, len(images)) if box.image is not None)])
            named.update(i for i, path in enumerate(images) if _names(said, path))
        elif is_int(said) and NUMBERED.search(key):
            named.add({0: 0, len(images): len(images) - 1}.get(said))
    return named.pop() if len(named) == 1 else None


def _said(info: Any, key: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Texts and numbers of a value, each with the key it stands right under; keys are texts, too."""
    if isinstance(info, dict) and depth < DEEPEST:
        for name, value in info.items():
            yield "", str(name)
            yield from _said(value, str(name), depth + 1)
    elif isinstance(info, list) and depth < DEEPEST:
        for value in info:
            yield from _said(value, "", depth + 1)
    else:
        yield key, info


def _names(said: str, path: str) -> bool:
    """Whether a text holds a path or its file name, and not as a part of another one."""
    return any(
        re.search(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", said) is not None for name in (path, Path(path).name)
    )


def write(records: Sequence[RawRecord], name: str) -> dict[str, Any]:
    """The row of one record with exactly one target."""
    (record,) = records
    if len(record.targets) != 1:
        raise Refused("schema", f"the format {name} holds one box, and the record has {len(record.targets)}")
    same = record.format in NAMES
    images_key, task = record.shape.get("keys", ["images", "task"]) if same else ["images", "task"]
    row: dict[str, Any] = {**record.extra, "question": record.question if same else marked(record)}
    row["answer"] = list(record.targets[0].box)
    row[images_key] = record.images[0] if same and record.shape.get("one_image") else list(record.images)
    if name == "mig_bench" and not same:
        row = {"additional_info": "", "need_format": True} | row
    told = {"id": record.uid, task: record.task, "cot": record.cot} | told_by(record, same)
    return row | {key: value for key, value in told.items() if value is not None}
