"""The trainer's own evaluation: held-out records, greedily answered, sharded over ranks."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from univg_fast import distributed
from univg_fast.config import EvaluateConfig, RolloutConfig
from univg_fast.data.samples import Processor
from univg_fast.evaluate.answers import Batch, answer
from univg_fast.evaluate.benchmarks import RECORDS
from univg_fast.evaluate.items import item_of
from univg_fast.evaluate.metrics import summarize
from univg_fast.evaluate.parsers import PARSERS
from univg_fast.evaluate.score import score
from univg_fast.files import write_whole
from univg_fast.model import PackedModel
from univg_fast.structs import Record

PARSER = "answer_tag"


class Stopped(Exception):
    """An evaluation was asked to stop. Raised on all ranks alike."""


def evaluate(
    model: PackedModel,
    processor: Processor,
    records: Sequence[Record],
    config: EvaluateConfig,
    rollout: RolloutConfig,
    out: Path,
    progress: Any = None,
    should_stop: Callable[[], bool] | None = None,
) -> dict[str, Any]:
    """Answer every record greedily; write OUT.jsonl (a row per sample) and OUT.json (the summary). Collective.

    A record whose images cannot be decoded counts with IoU 0, and is named in the summary; one with several targets has
    a row for each of them. `progress(done, total)` is called after each batch of this rank. Once `should_stop` says yes
    on any rank, `Stopped` is raised on all, when the others have come to their end or heard of it, too. Returns the
    summary on every rank.
    """
    started = time.perf_counter()
    items = [item_of(record) for record in records[: config.max_samples]]
    share = items[distributed.rank() :: distributed.world_size()]
    mine: Batch = []
    for batch in answer(model, processor, share, config, rollout, should_stop or (lambda: False)):
        mine += batch
        if progress:
            progress(len(mine), len(share))
    parts = distributed.gather_objects(([(item.uid, said) for item, said in mine], len(mine) < len(share)))
    if any(stopped for _, stopped in parts):
        raise Stopped(f"the evaluation {out.name} was asked to stop; nothing of it was written")
    answers = {uid: said for part, _ in parts for uid, said in part}
    rows = score(items, answers, RECORDS, PARSERS[PARSER])
    summary = {"name": out.name, **summarize(rows)}
    summary["seconds"] = round(time.perf_counter() - started, 2)
    summary["bad_records"] = [said.error for said in answers.values() if said.error]
    summary["protocol"] = {
        "parser": PARSER,
        "decoding": "greedy",
        "max_new_tokens": config.max_completion_length,
        "stop_strings": list(rollout.stop_strings),
    }
    if distributed.is_main():
        write_whole(out.with_suffix(".jsonl"), "".join(json.dumps(row) + "\n" for row in rows))
        write_whole(out.with_suffix(".json"), json.dumps(summary, indent=1) + "\n")
    distributed.barrier()
    return summary
