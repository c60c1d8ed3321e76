"""The benchmarks by name: how a file of each is read, its tasks, its protocols and how many entries it should have."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from univg_fast.data.errors import Refused
from univg_fast.data.formats import grounding, read_row
from univg_fast.data.formats.questions import holder
from univg_fast.data.formats.raw import is_int
from univg_fast.data.images import Header, Headers
from univg_fast.data.records import Reading, read_record, usable

from .items import UNKNOWN, Item, Protocol, Truth, box_of, entries, item_of

MIG_TASKS = {  # task of the file -> its name in the published tables, in their order
    "diff": "Static",
    "view_diff": "Robust",
    "common_object": "Common",
    "object_tracking": "OT",
    "multi_view": "MV",
    "region": "Region",
    "refer_grounding": "Refer",
    "group_grounding": "GG",
    "reasoning": "Reason",
    "correspondence": "Co-Re",
}
MIG_COUNTS = {
    "original": dict(zip(MIG_TASKS, (528, 94, 816, 550, 288, 1203, 99, 499, 101, 117), strict=True)),
    "revised": dict(zip(MIG_TASKS, (528, 94, 815, 550, 288, 1203, 99, 485, 97, 117), strict=True)),
}
ORIGINAL, REVISED = Protocol("original", "fractions"), Protocol("revised", "thousandths")
ZERO_SHOT = Protocol("zero_shot", "fractions", 1e-6)
LMMS_EVAL = Protocol("lmms_eval", "fractions")
RECORDS = Protocol("records", "thousandths")
REFERRED = "Output the bounding box in the image corresponding to the instruction: {}."
Read = Callable[[dict[str, Any], str, Path, Headers], list[Item]]  # (entry, place, where its images are, headers)


@dataclass(frozen=True)
class Benchmark:
    """`tasks`: task of the file -> its published name. `counts`: entries by protocol and task, where somebody says.
    `named`: the entries name their tasks; else the benchmark is one."""

    read: Read
    protocols: tuple[Protocol, ...]
    tasks: dict[str, str] = field(default_factory=dict)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    named: bool = False


def mig_bench(entry: dict[str, Any], place: str, root: Path, headers: Headers) -> list[Item]:
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
            images=_absolute(paths, root),
            question=question,
            truths=(Truth(box, where),) if box else (),
            problem=problem,
        )
    ]


def zero_shot(entry: dict[str, Any], place: str, root: Path, headers: Headers) -> list[Item]:
    """LISA, LLMSeg, ReVOS, ReasonVOS: pixels of the file over the size of the target's image."""
    name = grounding.recognise(entry)
    try:
        if name is None:
            raise Refused("schema", f"expected the keys of one of {', '.join(grounding.KEYS)}")
        (raw,) = grounding.read(entry, root)
    except Refused as error:
        return [Item(_uid(entry), place, UNKNOWN, problem=error.problem)]
    target, images = raw.targets[0], _absolute(raw.images, root)
    pixels = tuple(map(int, target.box)) if name in ("reasonvos", "revos") else target.box  # as the scripts do
    size, problem = _size(entry, images[target.image or 0], headers)
    truths = (Truth(_over(pixels, size), target.image),) if size else ()
    return [Item(_uid(entry), place, UNKNOWN, images, raw.question, truths, problem=problem)]


def refcoco(entry: dict[str, Any], place: str, root: Path, headers: Headers) -> list[Item]:
    """{"image", "bbox": [x, y, width, height] px, "answer": an expression or several}: an item for each of them."""
    image, box, said = entry.get("image", entry.get("file_name")), box_of(entry.get("bbox")), entry.get("answer")
    texts = said if isinstance(said, list) and said and all(isinstance(text, str) for text in said) else [said]
    problem = None
    images: tuple[str, ...] = ()
    truths: tuple[Truth, ...] = ()
    if not isinstance(image, str) or box is None or not isinstance(texts[0], str):
        problem = "expected image (a path), bbox [x, y, width, height] and answer (a text, or several)"
    else:
        images = _absolute([image], root)
        size, problem = _size(entry, images[0], headers)
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


def records(entry: dict[str, Any], place: str, root: Path, headers: Headers) -> list[Item]:
    """Any format of docs/data.md, several targets of a record included."""
    reading, items = Reading(root, headers=headers), []
    file, _, line = place.rpartition(":")
    try:
        for raw in usable(read_row(entry, root)):
            items.append(item_of(read_record(raw, place, f"{Path(file).stem}:{line}", reading)[0]))
    except Refused as error:
        task = entry.get("task", entry.get("type"))
        items.append(Item(_uid(entry), place, task if isinstance(task, str) else UNKNOWN, problem=error.problem))
    return items


BENCHMARKS = {
    "mig_bench": Benchmark(mig_bench, (ORIGINAL, REVISED), MIG_TASKS, MIG_COUNTS, named=True),
    "lisa_val": Benchmark(zero_shot, (ZERO_SHOT,), counts={"zero_shot": {"lisa_val": 200}}),
    "lisa_test": Benchmark(zero_shot, (ZERO_SHOT,), counts={"zero_shot": {"lisa_test": 779}}),
    "llmseg": Benchmark(zero_shot, (ZERO_SHOT,)),
    "reasonvos": Benchmark(zero_shot, (ZERO_SHOT,), counts={"zero_shot": {"reasonvos": 458}}),
    "revos": Benchmark(zero_shot, (ZERO_SHOT,)),
    "refcoco": Benchmark(refcoco, (LMMS_EVAL,)),
    "refcoco+": Benchmark(refcoco, (LMMS_EVAL,)),
    "refcocog": Benchmark(refcoco, (LMMS_EVAL,)),
    "multi_target": Benchmark(records, (RECORDS,), named=True),
    "records": Benchmark(records, (RECORDS,), named=True),
}


def read_items(
    name: str, path: Path, root: Path | None = None, protocol: str | None = None
) -> tuple[list[Item], Protocol]:
    """Every entry of a benchmark's file, and the protocol: the one asked for, or the one that the numbers are of.

    An entry without an id is known by its number, from 0; of several with one id the later ones get "@2", "@3".
    ValueError for an unknown name or protocol, a file that is none, and MIG-Bench in the other protocol's numbers.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"--benchmark: expected one of {', '.join(BENCHMARKS)}, got {name!r}")
    benchmark, headers = BENCHMARKS[name], Headers()
    items: list[Item] = []
    for number, (place, entry, wrong) in enumerate(entries(path)):
        found = [Item("", place, UNKNOWN, problem=wrong)] if entry is None else benchmark.read(
            entry, place, (root or path.parent).absolute(), headers)  # fmt: skip
        default = [str(number) if len(found) == 1 else f"{number}.{k}" for k in range(len(found))]
        if not benchmark.named:
            found = [replace(item, task=name) for item in found]
        items += [item if item.uid else replace(item, uid=uid) for item, uid in zip(found, default, strict=True)]
    chosen = _protocol(benchmark, protocol, items)
    return _distinct(items), chosen


def _protocol(benchmark: Benchmark, asked: str | None, items: list[Item]) -> Protocol:
    known = {protocol.name: protocol for protocol in benchmark.protocols}
    if asked is not None and asked not in known:
        raise ValueError(f"--protocol: expected one of {', '.join(known)}, got {asked!r}")
    if len(known) == 1:
        return benchmark.protocols[0]
    boxes = [item.truths[0].box for item in items if item.truths]
    within = sum(max(map(abs, box)) <= 1 for box in boxes)
    if not boxes:
        return known[asked or "revised"]
    told = "original" if 2 * within > len(boxes) else "revised"  # one coordinate of the original set lies above 1
    if asked not in (None, told):
        raise ValueError(
            f"--protocol: {within} of {len(boxes)} answers are fractions, as in the {told} set; expected --protocol "
            f"{told}, got {asked}"
        )
    return known[told]


def _distinct(items: list[Item]) -> list[Item]:
    seen: Counter[str] = Counter()
    out = []
    for item in items:
        seen[item.uid] += 1
        again = seen[item.uid] > 1
        out.append(replace(item, uid=f"{item.uid}@{seen[item.uid]}", again=True) if again else item)
    return out


def _uid(entry: dict[str, Any]) -> str:
    """The entry's own id; "" where it has none."""
    for key in ("uid", "id", "question_id"):
        value = entry.get(key)
        if isinstance(value, str) and value or is_int(value):
            return str(value)
    return ""


def _absolute(paths: Any, root: Path) -> tuple[str, ...]:
    return tuple(os.path.join(root, path.removeprefix("./")) for path in paths)


def _size(entry: dict[str, Any], image: str, headers: Headers) -> tuple[tuple[int, int] | None, str | None]:
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
