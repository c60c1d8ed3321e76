"""The functions of mig_bench.yaml, which lmms-eval loads from this file: our reader, our prompt, our scorer.

It imports nothing of lmms-eval. Figures are in per cent; `mig_bench_avg` is the mean of the ten tasks' Acc@0.5.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from univg_fast.data.coordinates import Size, smart_resize
from univg_fast.data.images import UNREADABLE, load_image
from univg_fast.data.prompts import instruction
from univg_fast.evaluate.benchmarks import BENCHMARKS, MIG_TASKS, read_items
from univg_fast.evaluate.items import Item, Truth, record_of
from univg_fast.evaluate.metrics import summarize
from univg_fast.evaluate.parsers import parser_of
from univg_fast.evaluate.predictions import Prediction
from univg_fast.evaluate.score import score

Doc = dict[str, Any]
FACTOR = 28  # of Qwen2.5-VL, in px
BLANK = (56, 56)  # px
LOOKS: dict[str, Size | str] = {}  # of each image its size, or why it has none
PROTOCOLS = {protocol.name: protocol for protocol in BENCHMARKS["mig_bench"].protocols}


def process_docs(dataset: Any) -> Any:
    """The benchmark's entries, instead of what the task file names."""
    if "MIG_BENCH" not in os.environ:
        raise ValueError(
            "mig_bench: set MIG_BENCH to the benchmark's file (and MIG_BENCH_IMAGES to its images' folder)"
        )
    root = os.environ.get("MIG_BENCH_IMAGES")
    items, protocol = read_items("mig_bench", Path(os.environ["MIG_BENCH"]), Path(root) if root else None)
    gone = sorted({path for item in items for path in item.images if not Path(path).is_file()})
    if gone:
        print(f"mig_bench: {len(gone)} images are not there, and their entries count 0: {gone[0]}", file=sys.stderr)
    if _bounds() is None:
        print(
            "mig_bench: boxes are read in thousandths; for a model that answers in pixels of the resized image, such "
            "as Qwen2.5-VL, set MIG_BENCH_RESIZED=MIN_PIXELS,MAX_PIXELS (of its image processor)",
            file=sys.stderr,
        )
    return type(dataset).from_list([doc_of(item, protocol.name) for item in items])


def doc_of(item: Item, protocol: str) -> Doc:
    """An item in types that a table of datasets holds; a truth, which may be missing, as a text."""
    told = {"uid": item.uid, "source": item.source, "task": item.task, "images": list(item.images)}
    return told | {"question": item.question, "truths": json.dumps(item.truths), "protocol": protocol}


def item_of(doc: Doc) -> Item:
    truths = tuple(Truth(tuple(box), image) for box, image in json.loads(doc["truths"]))
    return Item(doc["uid"], doc["source"], doc["task"], tuple(doc["images"]), doc["question"], truths)


def doc_to_visual(doc: Doc) -> list[Image.Image]:
    """Its images; a white one for each that cannot be decoded, as no entry is left out: it counts 0."""
    return [_looked_at(path) or Image.new("RGB", BLANK, "white") for path in doc["images"]]


def _looked_at(path: str) -> Image.Image | None:
    try:
        image = load_image(path)
    except UNREADABLE as error:
        LOOKS[path] = f"cannot decode the image {path}: {error}"
        return None
    LOOKS[path] = image.size
    return image


def _bounds() -> tuple[int, int] | None:
    """The least and the most pixels of a resized image, for a model that counts in them."""
    given = os.environ.get("MIG_BENCH_RESIZED")
    if not given:
        return None
    low, _, high = given.partition(",")
    if not (low.isdecimal() and high.isdecimal() and int(low) <= int(high)):
        raise ValueError(f"MIG_BENCH_RESIZED: expected MIN_PIXELS,MAX_PIXELS, two integers, got {given!r}")
    return int(low), int(high)


def _said(doc: Doc, text: str) -> Prediction:
    """What was answered; nothing, where an image was not there to be asked about."""
    for path in doc["images"]:
        if path not in LOOKS:
            _looked_at(path)
    looks = [LOOKS[path] for path in doc["images"]]
    wrong = next((look for look in looks if isinstance(look, str)), None)
    if wrong is not None:
        return Prediction(error=wrong)
    sizes, bounds = tuple(look for look in looks if not isinstance(look, str)), _bounds()
    resized = () if bounds is None else tuple(smart_resize(size, FACTOR, *bounds) for size in sizes)
    return Prediction(text, sizes=sizes, resized=resized)


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
    said = {doc["uid"]: _said(doc, results[0] if results else "")}
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
