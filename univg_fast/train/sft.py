"""One step of stage 1: mean cross entropy over all target tokens of the global batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from univg_fast import distributed
from univg_fast.config import Config
from univg_fast.data.loader import SampleLoader
from univg_fast.loss import sft_head
from univg_fast.packing import Row, build_row
from univg_fast.structs import BadRecord, Group, Sample
from univg_fast.train.engine import train_step
from univg_fast.train.rows import Phases, pack_groups, room, rows_needed


class SftStep:
    """Call it with a step's number: (metrics, equal on all ranks; nothing; this rank's bad records)."""

    def __init__(self, config: Config, engine: Any, loader: SampleLoader, spare: Sample, phases: Phases) -> None:
        self.config, self.engine, self.loader, self.phases = config, engine, loader, phases
        self.model = engine.module
        # stands in with weight 0 where this rank has fewer rows than the others
        self.spare = build_row([_group(spare)], self.model.family).to(self.model.device)

    def __call__(self, step: int) -> tuple[dict[str, float], list[dict[str, Any]], list[BadRecord]]:
        budget = self.config.pack.budget_tokens
        with self.phases("data"):
            samples, bad = self.loader.batch(step)
            rows = pack_groups([_group(s) for s in samples], self.model.family, budget, self.model.device)
            mine = {
                "num_tokens": sum(len(r.target_ids) for r in rows),
                "packed_tokens": sum(r.num_tokens for r in rows),
                "room": room(rows, budget),
                "bad_records": len(bad),
            }
            total = distributed.reduce_floats(mine)
        with self.phases("update"):
            result = train_step(self.engine, self._losses(rows, max(total["num_tokens"], 1.0)))
        metrics = {
            "loss": distributed.reduce_floats({"loss": result.loss})["loss"],
            "grad_norm": result.grad_norm,
            "learning_rate": result.learning_rate,
            "skipped": float(not result.applied),
            "num_tokens": total["num_tokens"],
            "packed_tokens": total["packed_tokens"],
            "pack/fill": total["packed_tokens"] / max(total["room"], 1.0),
            "bad_records": total["bad_records"],
        }
        return metrics, [], bad

    def _losses(self, rows: list[Row], num_tokens: float) -> Iterator[torch.Tensor]:
        for index in range(rows_needed(len(rows), self.config.deepspeed.zero_stage)):
            row = rows[index] if index < len(rows) else self.spare
            loss, _ = self.engine(row, sft_head(row, num_tokens))
            yield loss if index < len(rows) else loss * 0.0


def _group(sample: Sample) -> Group:
    assert sample.response_ids is not None, "the loader makes stage-1 samples with a response"
    return Group(sample, (sample.response_ids,))
