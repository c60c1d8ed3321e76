"""The functions of mig_bench.yaml, which lmms-eval loads from this file: our reader, our prompt, our scorer.

It imports nothing of lmms-eval. Figures are in per cent; `mig_bench_avg` is the mean of the ten tasks' Acc@0.5.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from univg_fast.data.images import load_image
from univg_fast.data.prompts import instruction
from univg_fast.evaluate.benchmarks import BENCHMARKS, MIG_TASKS, read_items
from univg_fast.evaluate.items import Item, Truth, record_of
from univg_fast.evaluate.metrics import summarize
from univg_fast.evaluate.parsers import parser_of
from univg_fast.evaluate.predictions import Prediction
from univg_fast.evaluate.score import score

Doc = dict[str, Any]
PROTOCOLS = {protocol.name: protocol for protocol in BENCHMARKS["mig_bench"].protocols}


def process_docs(dataset: Any) -> Any:
    """The benchmark's entries, instead of what the task file names."""
    if "MIG_BENCH" not in os.environ:
        raise ValueError(
            "mig_bench: set MIG_BENCH to the benchmark's file (and MIG_BENCH_IMAGES to its images' folder)"
        )
    root = os.environ.get("MIG_BENCH_IMAGES")
    items, protocol = read_items("mig_bench", Path(os.environ["MIG_BENCH"]), Path(root) if root else None)
    return type(dataset).from_list([doc_of(item, protocol.name) for item in items])


def doc_of(item: Item, protocol: str) -> Doc:
    """An item in types that a table of datasets holds; a truth, which may be missing, as a text."""
    told = {"uid": item.uid, "source": item.source, "task": item.task, "images": list(item.images)}
    return told | {"question": item.question, "truths": json.dumps(item.truths), "protocol": protocol}


def item_of(doc: Doc) -> Item:
    truths = tuple(Truth(tuple(box), image) for box, image in json.loads(doc["truths"]))
    return Item(doc["uid"], doc["source"], doc["task"], tuple(doc["images"]), doc["question"], truths)


def doc_to_visual(doc: Doc) -> list[Any]:
    return [load_image(path) for path in doc["images"]]


def doc_to_text(doc: Doc, lmms_eval_specific_kwargs: dict[str, Any] | None = None) -> str:
    """The question with UniVG-R1's instruction; `post_prompt` instead of that where the model is given one."""
    record = record_of(item_of(doc))
    given = lmms_eval_specific_kwargs or {}
    return str(given.get("pre_prompt", "")) + record.question + str(given.get("post_prompt", instruction(record)))


def doc_to_target(doc: Doc) -> str:
    return str(doc["truths"])


def process_results(doc: Doc, results: Sequence[str]) -> dict[str, Doc]:
    """The row of an answer, for each metric."""
    parser = parser_of(os.environ.get("MIG_BENCH_PARSER", "answer_tag"))
    said = {doc["uid"]: Prediction(results[0] if results else "")}
    (row,) = score([item_of(doc)], said, PROTOCOLS[doc["protocol"]], parser)
    kept = {key: row[key] for key in ("uid", "task", "box", "iou", "fault")}
    return {f"mig_bench_{name}": kept for name in METRICS}


def _percent(*keys: str) -> Callable[[Sequence[Doc]], float]:
    """The aggregation that takes this figure out of a summary; NaN where no row belongs to it, as lmms-eval has it."""

    def aggregate(rows: Sequence[Doc]) -> float:
        found: Any = summarize(rows, num_resamples=1, tasks=tuple(MIG_TASKS)) if rows else {}
        for key in keys:
            found = found.get(key, {})
        return float("nan") if found == {} else 100 * float(found)

    return aggregate


avg = _percent("macro", "acc@0.5")
avg_acc_0_3 = _percent("macro", "acc@0.3")
avg_acc_0_7 = _percent("macro", "acc@0.7")
avg_miou = _percent("macro", "miou")
micro_acc_0_5 = _percent("acc@0.5")
acc_static, acc_robust, acc_common, acc_ot, acc_mv, acc_region, acc_refer, acc_gg, acc_reason, acc_co_re = (
    _percent("tasks", task, "acc@0.5") for task in MIG_TASKS
)
METRICS = (
    *("avg", "avg_acc_0_3", "avg_acc_0_7", "avg_miou", "micro_acc_0_5"),
    *(f"acc_{name.lower().replace('-', '_')}" for name in MIG_TASKS.values()),
)
