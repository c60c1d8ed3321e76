"""The benchmarks by name: how a file of each is read, its tasks, its protocols and how many entries it should have."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from univg_fast.config.schema import DataConfig
from univg_fast.data.entries import check_entry
from univg_fast.data.files import DataFile, data_files
from univg_fast.data.images import Headers
from univg_fast.data.records import Reading

from .items import UNKNOWN, Item, Protocol, entries
from .readers import Read, mig_bench, records, refcoco, zero_shot

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
AS_STORED = DataConfig()
RECORDS = Protocol("records", "thousandths")


@dataclass(frozen=True)
class Benchmark:
    """`tasks`: task of the file -> its published name. `counts`: entries by protocol and task, where somebody says.
    `named`: the entries name their tasks; else the benchmark is one. `pixels`: boxes are pixels of images as stored."""

    read: Read
    protocols: tuple[Protocol, ...]
    tasks: dict[str, str] = field(default_factory=dict)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    named: bool = False
    pixels: bool = False


BENCHMARKS = {
    "mig_bench": Benchmark(mig_bench, (ORIGINAL, REVISED), MIG_TASKS, MIG_COUNTS, named=True),
    "lisa_val": Benchmark(zero_shot, (ZERO_SHOT,), counts={"zero_shot": {"lisa_val": 200}}, pixels=True),
    "lisa_test": Benchmark(zero_shot, (ZERO_SHOT,), counts={"zero_shot": {"lisa_test": 779}}, pixels=True),
    "llmseg": Benchmark(zero_shot, (ZERO_SHOT,), pixels=True),
    "reasonvos": Benchmark(zero_shot, (ZERO_SHOT,), counts={"zero_shot": {"reasonvos": 458}}, pixels=True),
    "revos": Benchmark(zero_shot, (ZERO_SHOT,), pixels=True),
    "refcoco": Benchmark(refcoco, (LMMS_EVAL,), pixels=True),
    "refcoco+": Benchmark(refcoco, (LMMS_EVAL,), pixels=True),
    "refcocog": Benchmark(refcoco, (LMMS_EVAL,), pixels=True),
    "multi_target": Benchmark(records, (RECORDS,), named=True),
    "records": Benchmark(records, (RECORDS,), named=True),
}


def source_files(name: str, path: Path, root: Path | None = None, data: DataConfig = AS_STORED) -> list[DataFile]:
    """The files that hold a benchmark's entries. Those of the trainer's own data are found, and read, as the trainer
    does: as the entry of data.eval that names `path` says, where there is one. `root` wins. ValueError for no file."""
    if benchmark_of(name).read is not records:
        return [DataFile(str(path), path, image_root=root)]
    entry = next((e for e in map(check_entry, data.eval) if _same(e["path"], path)), {"path": str(path)})
    return data_files([{**entry, **({"image_root": str(root)} if root else {})}], data.image_root, data.cache_dir)


def read_items(
    name: str, path: Path, root: Path | None = None, protocol: str | None = None, data: DataConfig = AS_STORED
) -> tuple[list[Item], Protocol]:
    """Every entry of a benchmark's file, and the protocol: the one asked for, or the one that the numbers are of.

    An entry without an id is known by its number, from 0; of several with one id the later ones get "@2", "@3".
    `data`: the section that says how images and the trainer's own files are read.
    ValueError for an unknown name or protocol, a file that is none, MIG-Bench in the other protocol's numbers, and
    images turned by EXIF where boxes are pixels of what is stored.
    """
    benchmark = benchmark_of(name)
    if benchmark.pixels and data.exif != "ignore":
        raise ValueError(
            f"data.exif: the boxes of {name} are pixels of its images as stored; expected --data.exif=ignore, "
            f"got {data.exif}"
        )
    items: list[Item] = []
    for number, found in enumerate(_entries(benchmark, source_files(name, path, root, data), data)):
        default = [str(number) if len(found) == 1 else f"{number}.{k}" for k in range(len(found))]
        if not benchmark.named:
            found = [replace(item, task=name) for item in found]
        items += [item if item.uid else replace(item, uid=uid) for item, uid in zip(found, default, strict=True)]
    chosen = _protocol(benchmark, protocol, items)
    return _distinct(items), chosen


def benchmark_of(name: str) -> Benchmark:
    """ValueError for a name that is none."""
    if name not in BENCHMARKS:
        raise ValueError(f"--benchmark: expected one of {', '.join(BENCHMARKS)}, got {name!r}")
    return BENCHMARKS[name]


def _entries(benchmark: Benchmark, files: Sequence[DataFile], data: DataConfig) -> Iterator[list[Item]]:
    """The items of each entry, without default ids."""
    headers = Headers()
    for file in files:
        style = file.answer_style or data.answer_style
        reading = Reading(file.root, file.coordinates, style, file.cot, learned=False, exif=data.exif,
                          min_pixels=data.min_pixels, max_pixels=data.max_pixels, headers=headers)  # fmt: skip
        for place, entry, wrong in entries(file.path, Path(file.name).name):
            if entry is None:
                yield [Item("", place, _task_in(file.path, place, benchmark), problem=wrong)]
            else:
                yield benchmark.read(file.columns.apply(entry) if file.columns else entry, place, reading)


def _task_in(path: Path, place: str, benchmark: Benchmark) -> str:
    """The task that a damaged line still tells, where it is one of the benchmark's."""
    number = place.rpartition(":")[2]
    if not benchmark.tasks or not number.isdigit():
        return UNKNOWN
    with path.open("rb") as file:
        line = next(islice(file, int(number) - 1, None), b"").decode(errors="replace")
    found = re.search(r'"task"\s*:\s*"([^"]*)"', line)
    return found[1] if found and found[1] in benchmark.tasks else UNKNOWN


def _same(entry: str, path: Path) -> bool:
    return Path(entry).resolve() == path.resolve()


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
    taken, seen = {item.uid for item in items}, Counter[str]()
    out = []
    for item in items:
        seen[item.uid] += 1
        uid, nth = item.uid, seen[item.uid]
        while nth > 1 and uid in taken:
            uid, nth = f"{item.uid}@{nth}", nth + 1
        taken.add(uid)
        out.append(item if uid == item.uid else replace(item, uid=uid, again_of=item.uid))
    return out
