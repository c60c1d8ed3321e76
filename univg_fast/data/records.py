"""Data files to records: UniVG-R1's two formats, recognised by content; a bad entry is reported and skipped.

Stage 1 (sharegpt): {"id", "images", "conversations": [{"from": "human", "value"}, {"from": "gpt", "value"}],
"type"}; `messages` with role/content is read too. Stage 2: {"question", "answer": [x1, y1, x2, y2],
"images"}. Both may have "id", "task" (or "type"), "target_image" (from 0) and "cot". Boxes are integers
0-1000 of their image's own size.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from univg_fast.rewards.parse import answer_box
from univg_fast.structs import BadRecord, Box, Record, Target

from .errors import Refused
from .images import probe_all
from .jsonfile import read_rows
from .prompts import split_instruction

MARK = "<image>"
HUMAN, MODEL = ("human", "user"), ("gpt", "assistant")
STAGE1_KEYS = {"conversations", "messages", "type"}
STAGE2_KEYS = {"question", "answer"}
KNOWN = STAGE1_KEYS | STAGE2_KEYS | {"id", "images", "image", "task", "target_image", "cot"}


def read_records(path: str | Path, image_root: str | Path | None = None) -> tuple[list[Record], list[BadRecord]]:
    """Read one file. Relative image paths start at `image_root`, or at the file's folder.

    Every image is opened far enough to read its header; a damaged body shows when it is decoded. Each
    BadRecord's message begins with "path:line". ValueError only if there is no such file.
    """
    path = Path(path)
    root = Path(image_root) if image_root is not None else path.parent
    rows = list(read_rows(path))
    on_line = Counter(row[0] for row in rows if isinstance(row, tuple))
    entries = []
    for index, row in enumerate(rows):  # a list written on one line: only the index tells its elements apart
        mark = f"[{index}]" if isinstance(row, tuple) and on_line[row[0]] > 1 else ""
        entries.append(_entry(row, path, root, mark))
    problems = probe_all(image for entry in entries if isinstance(entry, Record) for image in entry.images)
    records: list[Record] = []
    bad: list[BadRecord] = []
    for entry in entries:
        if isinstance(entry, BadRecord):
            bad.append(entry)
        elif problem := next((problems[image] for image in entry.images if image in problems), None):
            bad.append(problem.bad_record(entry.source))
        else:
            records.append(entry)
    return records, bad


def _entry(row: tuple[int, Any] | BadRecord, path: Path, root: Path, mark: str) -> Record | BadRecord:
    if isinstance(row, BadRecord):
        return row
    line, value = row
    source = f"{path}:{line}{mark}"
    try:
        return parse_record(value, source, root, f"{path.stem}:{line}{mark}")
    except Refused as error:
        return error.bad_record(source)


def parse_record(row: Any, source: str, root: Path, default_uid: str) -> Record:
    """One decoded entry to a Record, its images not opened; Refused says what is wrong with it."""
    if not isinstance(row, dict):
        raise Refused("schema", f"expected an object, got {_brief(row)}")
    images = _images(row, root)
    turns = row.get("conversations", row.get("messages"))
    if turns is not None:
        text, response = _turns(turns)
        box = None
    elif "question" in row:
        text, response = _string(row, "question"), None
        box = _box(_need(row, "answer"), "answer")
    else:
        keys = ", ".join(row) or "none"
        raise Refused("schema", f"expected the key conversations (stage 1) or question (stage 2), got {keys}")
    if text.count(MARK) != len(images):
        marks = f"expected {len(images)} {MARK} marks, one for each image, got {text.count(MARK)}"
        raise Refused("count", marks)
    question, told = split_instruction(text.replace(MARK, ""))
    if not question:
        raise Refused("schema", "the question is empty")
    cot = _cot(row.get("cot", told), response)
    if response is not None:
        box = _response_box(response, cot)
    target = row.get("target_image")
    if target is not None and not (_is_int(target) and 0 <= target < len(images)):
        raise Refused("schema", f"target_image: expected an index from 0 to {len(images) - 1}, got {_brief(target)}")
    return Record(
        uid=str(row.get("id", default_uid)),
        source=source,
        images=tuple(images),
        question=question,
        targets=(Target(box, target),) if box is not None else (),
        response=response,
        task=str(row.get("task", row.get("type", "unknown"))),
        cot=cot,
        extra={key: value for key, value in row.items() if key not in KNOWN},
    )


def _images(row: dict[str, Any], root: Path) -> list[str]:
    images = row.get("images", row.get("image"))
    images = [images] if isinstance(images, str) else images
    if not isinstance(images, list) or not images or not all(isinstance(image, str) and image for image in images):
        raise Refused("schema", f"images: expected a list of paths with at least one, got {_brief(images)}")
    return [str((root / image).absolute()) for image in images]


def _turns(turns: Any) -> tuple[str, str]:
    """(human text, model text) of one question and one answer; a system turn may stand before them."""
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise Refused("schema", f"conversations: expected a list of turns, got {_brief(turns)}")
    said = [(turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))) for turn in turns]
    said = said[1:] if said and said[0][0] == "system" else said
    speakers = [speaker for speaker, _ in said]
    if len(said) != 2 or speakers[0] not in HUMAN or speakers[1] not in MODEL:
        raise Refused("schema", f"conversations: expected one human turn and one gpt turn, got {_brief(speakers)}")
    texts = [text for _, text in said]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise Refused("schema", "conversations: expected non-empty texts")
    return texts[0], texts[1].strip()


def _cot(told: Any, response: str | None) -> bool:
    """Whether the answer begins with reasoning: what the entry says, else what its target does, else yes."""
    if told is None:
        return response is None or "<think>" in response or "<answer>" in response
    if not isinstance(told, bool):
        raise Refused("schema", f"cot: expected true or false, got {_brief(told)}")
    return told


def _response_box(response: str, cot: bool) -> Box | None:
    """The box that a stage-1 target answers with; None where it claims none (no tag, and no <think>)."""
    box = answer_box(response, cot=cot)
    if box is None:
        if cot and ("<answer>" in response or "</answer>" in response or "<think>" in response):
            raise Refused("box", "the target has no <answer>(x1,y1),(x2,y2)</answer>")
        return None
    return _box(list(box), "the target's answer")


def _box(value: Any, name: str) -> Box:
    if not isinstance(value, list) or len(value) != 4 or not all(_is_int(v) or isinstance(v, float) for v in value):
        raise Refused("box", f"{name}: expected [x1, y1, x2, y2], got {_brief(value)}")
    if not all(v == v and abs(v) != float("inf") and v == int(v) and 0 <= v <= 1000 for v in value):
        raise Refused(
            "box",
            f"{name}: expected integers from 0 to 1000 (of the image's own width and height), got {value}",
        )
    x1, y1, x2, y2 = (int(v) for v in value)
    if x1 >= x2 or y1 >= y2:
        raise Refused("box", f"{name}: expected x1 < x2 and y1 < y2, got {value}: inverted or without area")
    return x1, y1, x2, y2


def _need(row: dict[str, Any], key: str) -> Any:
    if key not in row:
        raise Refused("schema", f"expected the key {key}, got the keys {', '.join(row)}")
    return row[key]


def _string(row: dict[str, Any], key: str) -> str:
    if not isinstance(row[key], str):
        raise Refused("schema", f"{key}: expected a text, got {_brief(row[key])}")
    return row[key]


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
