"""The benchmarks by name: how a file of each is read, its tasks, its protocols and how many entries it should have."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

from univg_fast.data.images import Headers

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
RECORDS = Protocol("records", "thousandths")


@dataclass(frozen=True)
class Benchmark:
    """`tasks`: task of the file -> its published name. `counts`: entries by protocol and task, where somebody says.
    `named`: the entries name their tasks; else the benchmark is one."""

    read: Read
    protocols: tuple[Protocol, ...]
    tasks: dict[str, str] = field(default_factory=dict)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    named: bool = False


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
