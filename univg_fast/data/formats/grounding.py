"""Reasoning segmentation turned into grounding: LISA, LLMSeg, ReVOS and ReasonVOS. All boxes are pixels.

LISA       {"image_path", "instruction", "boxes": [[x1, y1, x2, y2], ...]}: the first box counts
LLMSeg     {"image_path", "question", "bbox": numbers in lists}: the first four count
ReasonVOS  {"image_list", "question", "bbox_list": ["x1, y1, x2, y2", ...]}: the third image's counts
ReVOS      {"video_id", "frames": [numbers into the folder's pictures], "question", "bbox_list"}: likewise
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from univg_fast.data.errors import Refused

from .raw import RawRecord, RawTarget, brief, check_marks, images_of, is_int, is_number, need, numbers_of, rest, text_of

KEYS = {  # format -> where the images, the question and the boxes stand
    "lisa": ("image_path", "instruction", "boxes"),
    "llmseg": ("image_path", "question", "bbox"),
    "reasonvos": ("image_list", "question", "bbox_list"),
    "revos": ("video_id", "question", "bbox_list"),
}
NAMES = tuple(KEYS)
SINGLE = "Output the bounding box in the image corresponding to the instruction: {}."
VIDEO = (
    "This is a sequence of images from a video. Please understand the entire video content, and then output the"
    " bounding box in the third image according to the instruction: {}."
)
THIRD = 2
NUMBER = re.compile(r"-?\d{1,9}(?:\.\d{1,9})?")
PICTURES = (".jpg", ".jpeg", ".png")
DIGITS = re.compile(r"\d{1,18}")


def recognise(row: dict[str, Any]) -> str | None:
    return next((name for name, keys in KEYS.items() if all(key in row for key in keys)), None)


def read(row: dict[str, Any], root: Path) -> list[RawRecord]:
    """One record, its question in the words of the evaluation; Refused says what is wrong."""
    name = recognise(row)
    if name is None:
        raise Refused("schema", f"expected the keys of one of {', '.join(KEYS)}")
    images_key, question_key, boxes_key = KEYS[name]
    shape: dict[str, Any] = {boxes_key: need(row, boxes_key)}
    if name == "revos":
        shape |= {"video_id": row["video_id"], "frames": need(row, "frames")}
        images = _frames(text_of(row, "video_id"), row["frames"], root)
    else:
        images = images_of(row, images_key)
        shape |= {"one_image": True} if isinstance(row[images_key], str) else {}
    video = name in ("reasonvos", "revos")
    if video and len(images) <= THIRD:
        raise Refused("count", f"{images_key}: expected at least three images, got {len(images)}")
    asked = text_of(row, question_key)
    check_marks([asked], images, optional=True)
    return [
        RawRecord(
            format=name,
            images=images,
            question=(VIDEO if video else SINGLE).format(asked),
            targets=(RawTarget(_box(row[boxes_key], boxes_key, video), THIRD if video else 0),),
            coordinates="pixel",
            uid=row.get("id"),
            task=row.get("task", name),
            extra=rest(row, {"id", images_key, question_key, boxes_key, *(("frames",) if name == "revos" else ())}),
            shape=shape,
        )
    ]


def write(records: Sequence[RawRecord], name: str) -> dict[str, Any]:
    """The row of one record."""
    (record,) = records
    images_key, question_key, boxes_key = KEYS[name]
    if record.format != name or boxes_key not in record.shape:
        raise Refused("schema", f"the format {name} is written from {name} only, got a record of {record.format}")
    before, after = (VIDEO if name in ("reasonvos", "revos") else SINGLE).split("{}")
    asked = record.question.removeprefix(before).removesuffix(after)
    row = {**record.extra, question_key: asked, boxes_key: record.shape[boxes_key]}
    row |= {"id": record.uid} if record.uid is not None else {}
    if name == "revos":
        return row | {"video_id": record.shape["video_id"], "frames": record.shape["frames"]}
    return row | {images_key: record.images[0] if record.shape.get("one_image") else list(record.images)}


def _box(value: Any, name: str, video: bool) -> tuple[float, ...]:
    """The first box, or the third image's; nested lists and numbers in a text are flattened."""
    if video:
        if not isinstance(value, list) or len(value) <= THIRD:
            raise Refused("box", f"{name}: expected a box for each of three images or more, got {brief(value)}")
        value = value[THIRD]
    numbers = []
    for number in flat(value):
        numbers.append(number)
        if len(numbers) == 4:
            break
    return numbers_of(numbers, name)


def flat(value: Any) -> Iterator[Any]:
    if isinstance(value, list):
        for item in value:
            yield from flat(item)
    elif isinstance(value, str):
        yield from (float(text) if "." in text else int(text) for text in NUMBER.findall(value[:1000]))
    elif is_number(value):
        yield value


def _frames(video: str, frames: Any, root: Path) -> tuple[str, ...]:
    """Paths of a video's frames, numbered as UniVG-R1's scripts do: pictures by the first number in their names."""
    names = _listing(str(root / video))
    if names is None:
        where = "data.image_root says where relative paths start"
        raise Refused("missing", f"the folder of frames {root / video} does not exist ({where})")
    if not isinstance(frames, list) or not all(is_int(frame) and 0 <= frame < len(names) for frame in frames):
        raise Refused("schema", f"frames: expected numbers from 0 to {len(names) - 1}, got {brief(frames)}")
    return tuple(os.path.join(video, names[frame]) for frame in frames)


@lru_cache(maxsize=1024)
def _listing(folder: str) -> tuple[str, ...] | None:
    try:
        names = [name for name in os.listdir(folder) if name.lower().endswith(PICTURES)]
    except OSError:
        return None
    except ValueError:  # a NUL in the path
        return None
    return tuple(sorted(names, key=_place))


def _place(name: str) -> tuple[float, str]:
    number = DIGITS.search(name)
    return (int(number[0]) if number else math.inf, name)
