"""Greedy evaluation of held-out records through the rollout engine, sharded over ranks."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from univg_fast import distributed
from univg_fast.config import EvaluateConfig, RolloutConfig
from univg_fast.data.modeltext import from_model
from univg_fast.data.samples import Processor, SampleError, make_sample
from univg_fast.evaluate.metrics import iou, summarize
from univg_fast.model import PackedModel
from univg_fast.rewards import answer_box, has_format
from univg_fast.rollout import LocalEngine, Sampling, stop_ids
from univg_fast.structs import BadRecord, Record, Sample


class Stopped(Exception):
    """An evaluation was asked to stop and wrote nothing. Raised on all ranks alike."""


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

    A record whose images cannot be decoded counts with IoU 0, and is named in the summary. `progress(done, total)` is
    called after each batch of this rank. Once `should_stop` says yes on any rank, `Stopped` is raised on all, when the
    others have come to their end or heard of it, too. Returns the summary on every rank.
    """
    asked = should_stop or (lambda: False)
    started = time.perf_counter()
    chosen = list(records[: config.max_samples])
    share = chosen[distributed.rank() :: distributed.world_size()]
    engine = LocalEngine(
        model,
        processor.tokenizer,
        stop_ids(model.model, processor.end_token_id),
        cache_gib=rollout.cache_gib,
        static=None if rollout.cuda_graphs else False,
        should_stop=asked,
    )
    sampling = Sampling(config.max_completion_length, temperature=0.0, stop=rollout.stop_strings)
    rows: list[dict[str, Any]] = []
    bad: list[BadRecord] = []
    stop = asked()
    for at in range(0, len(share), config.prompts_per_batch):
        if stop:
            break
        samples, refused = decode(share[at : at + config.prompts_per_batch], processor)
        bad += refused
        completions = engine.generate(samples, 1, sampling)
        stop = asked()
        if stop:
            break  # what there is may be cut short
        rows += [
            answer_row(s, _norm1000(c[0].text, s, processor), len(c[0].token_ids))
            for s, c in zip(samples, completions, strict=True)
        ]
        rows += [missing_row(r, chosen) for r in refused]
        if progress:
            progress(min(at + config.prompts_per_batch, len(share)), len(share))
    parts = distributed.gather_objects((rows, bad, stop))
    if any(stopped for *_, stopped in parts):
        raise Stopped(f"the evaluation {out.name} was asked to stop; nothing of it was written")
    order = {r.uid: i for i, r in enumerate(chosen)}
    everything = sorted((row for part, *_ in parts for row in part), key=lambda row: order[row["uid"]])
    summary = {"name": out.name, **summarize(everything)}
    summary["seconds"] = round(time.perf_counter() - started, 2)
    summary["bad_records"] = [b.message for _, part, _ in parts for b in part]
    summary["protocol"] = {
        "parser": "answer_tag",
        "decoding": "greedy",
        "max_new_tokens": config.max_completion_length,
        "stop_strings": list(rollout.stop_strings),
    }
    if distributed.is_main():
        out.parent.mkdir(parents=True, exist_ok=True)
        out.with_suffix(".jsonl").write_text("".join(json.dumps(row) + "\n" for row in everything))
        out.with_suffix(".json").write_text(json.dumps(summary, indent=1) + "\n")
    distributed.barrier()
    return summary


def _norm1000(text: str, sample: Sample, processor: Processor) -> str:
    return from_model(text, processor.coordinates, sample.sizes, sample.resized, sample.record.targets)


def decode(records: Sequence[Record], processor: Processor) -> tuple[list[Sample], list[BadRecord]]:
    """Samples without a response, and the records that gave none."""
    samples, bad = [], []
    for record in records:
        try:
            samples.append(make_sample(record, processor, with_response=False))
        except SampleError as error:
            bad.append(error.bad_record())
    return samples, bad


def answer_row(sample: Sample, text: str, tokens: int) -> dict[str, Any]:
    """One line of OUT.jsonl."""
    record = sample.record
    box = answer_box(text, cot=record.cot)
    return {
        "uid": record.uid,
        "task": record.task,
        "images": list(record.images),
        "sizes": [list(size) for size in sample.sizes],
        "question": record.question,
        "target_image": record.target_image,
        "gt": record.box,
        "text": text,
        "box": box,
        "iou": iou(box, record.box) if record.box is not None else 0.0,
        "format": float(has_format(text, cot=record.cot)),
        "tokens": tokens,
    }


def missing_row(bad: BadRecord, records: Sequence[Record]) -> dict[str, Any]:
    """The line of a record that could not be shown to the model: it counts, with IoU 0."""
    record = next(r for r in records if r.source == bad.source)
    return {
        "uid": record.uid,
        "task": record.task,
        "images": list(record.images),
        "sizes": [],
        "question": record.question,
        "target_image": record.target_image,
        "gt": record.box,
        "text": "",
        "box": None,
        "iou": 0.0,
        "format": 0.0,
        "tokens": 0,
        "error": bad.message,
    }
