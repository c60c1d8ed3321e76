"""One step of stage 2: rollout and rewards, the reference, and the policy's updates.

The global batch of prompts is the loader's; each rank works on its share. All normalisers are global, so that the same
prompts give the same loss on any number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from univg_kernels import GrpoOutput

from univg_fast.config import Config
from univg_fast.config.losses import loss_config
from univg_fast.data.loader import SampleLoader
from univg_fast.loss import grpo_head, logprob_head
from univg_fast.loss.grpo import RowTargets, denominator
from univg_fast.model import ImageFeatures, PackedModel
from univg_fast.model.packed import Head
from univg_fast.packing import Row
from univg_fast.rollout import RolloutEngine, check_rollout
from univg_fast.rollout.local import evaluating
from univg_fast.structs import Group, Sample
from univg_fast.train import stopping
from univg_fast.train.draws import Draws, Images, encode
from univg_fast.train.engine import train_step
from univg_fast.train.grpo_log import Update, reduce_metrics, rollout_rows
from univg_fast.train.minibatch import MiniBatch, make_minibatches
from univg_fast.train.phases import Phases
from univg_fast.train.reference import Reference
from univg_fast.train.rows import Builder, OverBudget
from univg_fast.train.state import Outcome, StageState
from univg_fast.train.suspects import suspects
from univg_fast.train.zero import weight_buckets


class GrpoStep:
    """Call it with where the stage stands; None where a stop request ended the step before anything changed.

    Where that is in its first update, stopping.GivenUp is raised.
    `plain`: the policy in one piece (`plain_copy`), whose vision tower any rank may run at any time.
    """

    def __init__(
        self,
        config: Config,
        engine: Any,
        loader: SampleLoader[Images],
        rollout: RolloutEngine,
        plain: PackedModel,
        reference: Reference | None,
        spare: Sample,
        phases: Phases,
    ) -> None:
        self.config, self.engine, self.reference, self.phases = config, engine, reference, phases
        self.model: PackedModel = engine.module
        self.loss = loss_config(config.grpo)
        self.build = Builder.of(self.model)
        self.over_budget = OverBudget(config.pack.budget_tokens)
        tower = None if self.model.vision_trains else plain
        self.draws = Draws(config, self.loss, loader, rollout, tower, phases)
        stop = np.array([loader.processor.end_token_id], np.int64)
        self.spare = self.build.row([Group(spare, (stop,))]).to(self.model.device)
        encoded = [] if tower is None else encode(tower, [spare], self.build.images([spare], config.pack.budget_tokens))
        self.spare_features = encoded[0] if encoded else None

    def check(self, sample: Sample) -> str:
        """Before the first step: `check_rollout` against this step's own training pass. Collective."""

        def logprobs(group: Group) -> np.ndarray:
            row = self.build.row([group]).to(self.model.device)
            with evaluating(self.model):  # the rollout knows no dropout
                return self.engine(row, self._logprobs(row)).float().cpu().numpy()

        temperature, rollout = self.config.grpo.temperature, self.draws.rollout
        rollout.sync_weights(weight_buckets(self.model))
        layers = self.model.model.config.get_text_config().num_hidden_layers
        return check_rollout(rollout, sample, temperature, logprobs, self.model.model.dtype, layers)

    def __call__(self, state: StageState) -> Outcome | None:
        with self.phases("sync"):
            self.draws.rollout.sync_weights(weight_buckets(self.model, trained_only=True))
        drawn = self.draws(state.cursor)
        if drawn is None:
            return None
        with self.phases("data"):
            minibatches, sums = make_minibatches(drawn, self.config, self.build, self.over_budget, self.spare)
        drawn = drawn.without_features()
        with self.phases("ref"):
            for k, minibatch in enumerate(minibatches):
                if not minibatch.empty:
                    self._score(minibatch, after_an_update=k > 0)
        if stopping.agreed():
            return None
        updates: list[Update] = []
        named: list[str] = []
        for _ in range(self.config.grpo.num_iterations):
            for minibatch in minibatches:
                if minibatch.empty:  # on all ranks: nothing moves, nor by momentum or weight decay
                    continue
                outputs: list[GrpoOutput] = []
                losses = self._losses(minibatch, outputs, is_first=not updates)
                result = train_step(self.engine, losses, self.phases("optim")).read()
                updates.append(Update(result, outputs))
                if not result.applied:
                    named += suspects(result.losses, [held.uids for held in minibatch.rows])
                for held, output in zip(minibatch.rows, outputs, strict=True):
                    if held.targets.old_logp is None:  # later ratios are against the policy that sampled
                        held.targets.old_logp = output.logp
        held_rows = [held for minibatch in minibatches for held in minibatch.rows]
        metrics = reduce_metrics(drawn, sums, held_rows, updates, self.config)
        metrics["learning_rate"] = updates[-1].result.learning_rate if updates else self.engine.get_lr()[0]
        uids = [sample.record.uid for sample in drawn.trained.samples]
        rollouts = partial(rollout_rows, drawn, state.step + 1, self.config)
        return Outcome(metrics, rollouts, drawn.scored.bad, drawn.cursor, uids, sorted(set(named)))

    def _score(self, minibatch: MiniBatch, after_an_update: bool) -> None:
        """The reference's log-probs; and the policy's own, where an earlier mini-batch will have changed it."""
        rows, passes = minibatch.rows, minibatch.passes
        if self.reference is not None:
            spare = (self.spare, self.spare_features)
            found = self.reference.log_probs([h.row for h in rows], [h.features for h in rows], passes, spare)
            for held, logp in zip(rows, found, strict=True):
                held.targets.ref_logp = logp
        if not after_an_update:
            return
        with evaluating(self.model):
            for index in range(passes):
                row, features = self._row(minibatch, index)
                logp = self.engine(row, self._logprobs(row), features)
                if index < len(rows):
                    rows[index].targets.old_logp = logp

    def _losses(self, minibatch: MiniBatch, outputs: list[GrpoOutput], is_first: bool) -> Iterator[torch.Tensor]:
        """Of each pass; `outputs` gets the real rows'. The backward pass of a loss is a part of its phase.

        `is_first`: no weight has moved in this step, which can still be given up; where one has, it is finished.
        """
        divisor = denominator(self.loss, minibatch.responses, minibatch.tokens)
        kernels = self.config.model.kernels
        for index in range(minibatch.passes):
            if is_first and stopping.leaves_rows(index, together=self.config.deepspeed.zero_stage >= 2):
                break
            with self.phases("update", row=index):
                row, features = self._row(minibatch, index)
                if index < len(minibatch.rows):
                    head = grpo_head(row, minibatch.rows[index].targets, divisor, self.loss, kernels)
                    output = self.engine(row, head, features)
                    outputs.append(GrpoOutput(output.loss.detach(), output.metrics, output.logp))
                    yield output.loss
                else:  # another rank has more rows: take part with weight 0
                    nothing = RowTargets(*torch.zeros(2, 1, device=self.model.device))
                    head = grpo_head(row, nothing, 1.0, self.loss, kernels)
                    yield self.engine(row, head, features).loss * 0.0
        if is_first:
            with self.phases("update", row=minibatch.passes):  # a wait for ranks with more to do
                stopping.give_up_if_late()

    def _logprobs(self, row: Row) -> Head:
        return logprob_head(row, self.config.grpo.temperature, self.config.model.kernels)

    def _row(self, minibatch: MiniBatch, index: int) -> tuple[Row, ImageFeatures | None]:
        """The row of a pass, or the spare one."""
        if index >= len(minibatch.rows):
            return self.spare, self.spare_features
        return minibatch.rows[index].row, minibatch.rows[index].features
