"""One step of stage 1: mean cross entropy over all target tokens of the global batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from univg_fast import distributed
from univg_fast.config import Config
from univg_fast.data.loader import SampleLoader
from univg_fast.loss import sft_head
from univg_fast.packing import Row
from univg_fast.packing.report import figures, tally
from univg_fast.structs import Sample
from univg_fast.train import stopping
from univg_fast.train.engine import StepResult, train_step
from univg_fast.train.phases import Phases
from univg_fast.train.rows import Builder, OverBudget, patch_cost, reduce_step, sft_group, size_of
from univg_fast.train.state import Outcome, StageState
from univg_fast.train.suspects import suspects


class SftStep:
    """Call it with where the stage stands. Raises stopping.GivenUp where a stop request ended it in the middle."""

    def __init__(self, config: Config, engine: Any, loader: SampleLoader[Row], spare: Sample, phases: Phases) -> None:
        self.config, self.engine, self.loader, self.phases = config, engine, loader, phases
        self.model = engine.module
        self.over_budget = OverBudget(config.pack.budget_tokens)
        # stands in with weight 0 where this rank has fewer rows than the others
        self.spare = Builder.of(self.model).sft_row([spare]).to(self.model.device)

    def __call__(self, state: StageState) -> Outcome:
        budget = self.config.pack.budget_tokens
        with self.phases("data"):
            batch = self.loader.batch(state.cursor)
            loaded = [row for row in batch.rows if row.built is not None]
            rows = [row.built for row in loaded if row.built is not None]
            passes = max(1, batch.passes if self.config.deepspeed.zero_stage >= 2 else len(rows))
            patch = patch_cost(self.config.model)
            sizes = [[size_of(sft_group(sample), patch) for sample in row.samples] for row in loaded]
            for sample, size in zip(batch.samples, (size for row in sizes for size in row), strict=True):
                self.over_budget.tell(sample.record, size.tokens)
            spare_tokens = (passes - len(rows)) * self.spare.num_tokens
            mine = tally([size for row in sizes for size in row], sizes, budget, spare_tokens)
            mine |= {"scored_tokens": sum(len(r.target_ids) for r in rows), "bad_records": len(batch.bad)}
            total = reduce_step(mine, batch.digest, {"dearest": mine["cost"]}, batch.refused)
        if total["scored_tokens"]:
            losses = self._losses(rows, passes, total["scored_tokens"])
            result = train_step(self.engine, losses, self.phases("optim")).read()
        else:  # on all ranks: nothing moves, nor by momentum or weight decay
            result = StepResult(0.0, 0.0, True, self.engine.get_lr()[0], torch.zeros(0))
        metrics = {
            "loss": distributed.reduce_floats({"loss": result.loss})["loss"],
            "grad_norm": result.grad_norm,
            "learning_rate": result.learning_rate,
            "skipped": float(not result.applied),
            "scored_tokens": total["scored_tokens"],
            "bad_records": total["bad_records"],
        }
        metrics |= figures(total, total["dearest"], distributed.world_size())
        uids = [[sample.record.uid for sample in row.samples] for row in loaded]
        named = [] if result.applied else suspects(result.losses, uids)
        return Outcome(metrics, list, batch.bad, state.cursor + 1, [uid for names in uids for uid in names], named)

    def _losses(self, rows: Sequence[Row], passes: int, num_tokens: float) -> Iterator[torch.Tensor]:
        """A row goes to the device when its turn comes: the copy is queued behind the row before, without waiting.

        The backward pass of a loss is a part of its phase. Raises stopping.GivenUp at the end, on all ranks.
        """
        for index in range(passes):
            if stopping.leaves_rows(index, together=self.config.deepspeed.zero_stage >= 2):
                break
            with self.phases("update", row=index):
                row = rows[index].to(self.model.device) if index < len(rows) else self.spare
                loss, _ = self.engine(row, sft_head(row, num_tokens, self.config.model.kernels))
                yield loss if index < len(rows) else loss * 0.0
        with self.phases("update", row=passes):  # a wait for ranks with more to do
            stopping.give_up_if_late()
