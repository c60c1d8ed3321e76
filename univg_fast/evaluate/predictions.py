"""Answers from a file: whose they are, and what is odd about them, counted."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from univg_fast.data.formats.raw import is_int
from univg_fast.data.jsonfile import BOM, MALFORMED, Row, read_rows

from .items import Item

IDS = ("uid", "id", "question_id", "sample_id", "index")
TEXTS = ("text", "prediction", "response", "output", "answer", "completion")
BOXES = ("box", "prediction")  # not "answer": there many files keep the right one
SHOWN = 20  # examples that a report names of each kind


@dataclass(frozen=True)
class Prediction:
    """What was answered: a text, or boxes of four numbers in thousandths (of which any may be NaN), and the 0-based
    image of each, None where nobody says."""

    text: str = ""
    boxes: tuple[tuple[Any, ...], ...] | None = None
    tokens: int = 0
    error: str | None = None
    sizes: tuple[tuple[int, int], ...] = ()  # of the images that were shown, (width, height) px
    box_images: tuple[int | None, ...] = ()
    resized: tuple[tuple[int, int], ...] = ()  # as the model saw them, where its boxes are pixels of that

    @property
    def empty(self) -> bool:
        return not self.text.strip() and self.boxes is None


def read_predictions(path: Path, items: Sequence[Item]) -> tuple[dict[str, Prediction], dict[str, Any]]:
    """Predictions by the uid of their item, and the report: counts, and the first ids of each kind.

    A line is an object with an id (one of IDS) and a text (one of TEXTS); or, in thousandths, four numbers under one of
    BOXES, or a list of boxes there, and under "image" the 0-based image of all or a list of them. Where no line has an
    id, they are the items' in their order. Of several for one item the first counts; several items with one id have
    theirs in order, and what is missing then is the first one's. ValueError where there is no such file, or it holds a
    model's answers to the oracle image.
    """
    lines, broken = [], []
    for place, value in _values(path):
        if isinstance(value, dict):
            _refuse_oracle(value.get("settings"), place)
            if value.keys() == {"settings"}:  # journal.py's first line
                continue
            lines.append((value, _prediction(value)))
        elif isinstance(value, str):  # a bare answer
            lines.append(({}, Prediction(value)))
        else:
            broken.append(place)
    ids = [_id(line) for line, _ in lines]
    ordered = bool(lines) and not any(uid is not None for uid in ids)
    found: dict[str, Prediction] = {}
    places: dict[str, list[str]] = {item.uid: [item.uid] for item in items}
    for item in items:
        if item.again_of is not None:
            places[item.again_of].append(item.uid)
    odd: dict[str, list[str]] = {"unknown": [], "duplicate": [], "without_id": []}
    for number, (uid, (_, prediction)) in enumerate(zip(ids, lines, strict=True)):
        if ordered and not broken:
            uid = items[number].uid if number < len(items) else f"line {number + 1}"
        if uid is None:
            odd["without_id"].append(f"entry {number + 1}")
        elif uid not in places:
            odd["unknown"].append(uid)
        elif free := next((place for place in places[uid] if place not in found), None):
            found[free] = prediction
        else:
            odd["duplicate"].append(uid)
    for item in items:
        if item.again_of in found:
            found.setdefault(item.uid, found[item.again_of])
    missing = [item.uid for item in items if item.uid not in found]
    empty = [uid for uid, prediction in found.items() if prediction.empty]
    examples = {"broken_lines": broken, **odd, "missing": missing, "empty": empty}
    report: dict[str, Any] = {"lines": len(lines) + len(broken), "matched_by": "order" if ordered else "id"}
    report |= {kind: len(names) for kind, names in examples.items()}
    return found, report | {"examples": {kind: names[:SHOWN] for kind, names in examples.items() if names}}


def _refuse_oracle(settings: Any, place: str) -> None:
    """Images that such answers name are not those of the items."""
    if isinstance(settings, dict) and settings.get("oracle_image"):
        raise ValueError(
            f"--predictions: {place}: expected answers to all images, got those of --oracle-image; to score them again "
            "take --model and --oracle-image with the folder as --out: nothing is asked twice"
        )


def _id(line: dict[str, Any]) -> str | None:
    for key in IDS:
        value = line.get(key)
        if isinstance(value, str) and value or is_int(value):
            return str(value)
    return None


def _prediction(line: dict[str, Any]) -> Prediction:
    """A text wins over a box: it says more."""
    error, tokens = line.get("error"), line.get("tokens")
    told = error if isinstance(error, str) else None
    number = tokens if isinstance(tokens, int) else 0
    for key in TEXTS:
        if isinstance(line.get(key), str):
            sizes, resized = _sizes(line.get("sizes")), _sizes(line.get("resized"))
            return Prediction(line[key], None, number, told, sizes, resized=resized)
    given = next((line[key] for key in BOXES if isinstance(line.get(key), list)), None)
    if given is None:
        return Prediction("", None, number, told)
    several = all(isinstance(box, list) for box in given)
    boxes = tuple(map(tuple, given)) if several else (tuple(given),)
    return Prediction("", boxes, number, told, box_images=_images(line.get("image"), len(boxes)))


def _sizes(value: Any) -> tuple[tuple[int, int], ...]:
    """[[width, height], …] as our own answers have them; () for anything else."""
    pairs = value if isinstance(value, list) else []
    good = all(isinstance(pair, list) and len(pair) == 2 and all(is_int(v) and v > 0 for v in pair) for pair in pairs)
    return tuple((width, height) for width, height in pairs) if good else ()


def _images(value: Any, boxes: int) -> tuple[int | None, ...]:
    """The image of each box: one for all, or a list of as many; None is what is no image."""
    each = value if isinstance(value, list) and len(value) == boxes else [value] * boxes
    return tuple(image if is_int(image) and image >= 0 else None for image in each)


def _values(path: Path) -> Iterator[tuple[str, Any]]:
    """(place, decoded) of each entry, None where it is damaged. Half a surrogate pair does not lose an answer."""
    if not path.is_file():
        raise ValueError(f"--predictions: expected a JSONL file, got {path}: no such file")
    content = path.read_bytes()
    if content.lstrip()[:1] == b"[":
        for row in read_rows(path, path.name):
            yield (f"{path.name}:{row.place}", row.value) if isinstance(row, Row) else (row.source, None)
        return
    for number, line in enumerate(content.removeprefix(BOM).split(b"\n"), 1):
        if line.strip():
            try:
                yield f"{path.name}:{number}", json.loads(line.decode(errors="replace"))
            except MALFORMED:
                yield f"{path.name}:{number}", None


def data_report(items: Sequence[Item], problems: Sequence[str | None], counts: dict[str, int]) -> dict[str, Any]:
    """What is odd about the benchmark's file. `counts`: how many of each task there should be, {} where nobody says."""
    missing = [item.uid for item in items if any(not Path(path).is_file() for path in item.images)]
    again = [item.uid for item in items if item.again_of is not None]
    bad = [f"{i.uid} ({i.source}): {p}" for i, p in zip(items, problems, strict=True) if p]
    have = Counter(item.task for item in items)
    report: dict[str, Any] = {"entries": len(items), "bad_entries": len(bad), "missing_images": len(missing)}
    report |= {"duplicate_ids": len(again), "entries_by_task": dict(sorted(have.items()))}
    off = {task: f"{have[task]} of {n}" for task, n in counts.items() if have[task] != n}
    report |= {"other_number_than_published": off} if off else {}
    examples = {"bad_entries": bad, "missing_images": missing, "duplicate_ids": again}
    return report | {"examples": {kind: names[:SHOWN] for kind, names in examples.items() if names}}
