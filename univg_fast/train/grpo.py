"""One step of stage 2: rollout, rewards, advantages and difficulty, reference, and the policy update.

The global batch of prompts is the loader's; each rank works on its share. All normalisers are global, so that the same
prompts give the same loss on any number of ranks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from univg_kernels import GrpoOutput

from univg_fast import distributed
from univg_fast.config import Config
from univg_fast.data.loader import Batch, SampleLoader
from univg_fast.loss import grpo_head, logprob_head
from univg_fast.loss.grpo import RowTargets
from univg_fast.model import ImageFeatures, PackedModel
from univg_fast.packing import Row
from univg_fast.packing.plan import Part, plan_rows
from univg_fast.packing.report import tally
from univg_fast.packing.vision import VisionInputs
from univg_fast.rollout import RolloutEngine, Sampling, check_rollout
from univg_fast.rollout.local import evaluating
from univg_fast.structs import Group, Sample
from univg_fast.train import stopping
from univg_fast.train.engine import StepResult, train_step
from univg_fast.train.grpo_log import reduce_metrics, rollout_rows
from univg_fast.train.phases import Phases
from univg_fast.train.reference import Reference
from univg_fast.train.rows import Builder, OverBudget, reduce_step, size_of
from univg_fast.train.scoring import Sampled, Scored, loss_config, score_step
from univg_fast.train.state import Outcome, StageState
from univg_fast.train.zero import weight_buckets

Images = tuple[torch.Tensor, VisionInputs]  # patches of several samples' images, and how the tower reads them


class GrpoStep:
    """Call it with where the stage stands; None where a stop request ended the step before anything changed.

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
        self.config, self.engine, self.loader = config, engine, loader
        self.rollout, self.plain, self.reference, self.phases = rollout, plain, reference, phases
        self.model: PackedModel = engine.module
        self.loss = loss_config(config)
        self.build = Builder.of(self.model)
        self.over_budget = OverBudget(config.pack.budget_tokens)
        stop = np.array([loader.processor.end_token_id], np.int64)
        self.spare = self.build.row([Group(spare, (stop,))]).to(self.model.device)
        encoded = self._encode([spare], self.build.images([spare]))
        self.spare_features = encoded[0] if encoded else None

    def check(self, sample: Sample) -> str:
        """Before the first step: `check_rollout` against this step's own training pass. Collective."""
        temperature, kernels = self.config.grpo.temperature, self.config.model.kernels

        def logprobs(group: Group) -> np.ndarray:
            row = self.build.row([group]).to(self.model.device)
            with evaluating(self.model):  # the rollout knows no dropout
                return self.engine(row, logprob_head(row, temperature, kernels)).float().cpu().numpy()

        self.rollout.sync_weights(weight_buckets(self.model))
        layers = self.model.model.config.get_text_config().num_hidden_layers
        return check_rollout(self.rollout, sample, temperature, logprobs, self.model.model.dtype, layers)

    def __call__(self, state: StageState) -> Outcome | None:
        with self.phases("data"):
            batch = self.loader.batch(state.cursor)
        with self.phases("gen"):
            sampled = self._sample(batch, state.cursor)
        if stopping.agreed():  # a rollout that is asked to stop returns what it has at once
            return None
        with ThreadPoolExecutor(max(1, self.config.data.num_workers), thread_name_prefix="rows") as pool:
            groups = sampled.groups()
            plan, sums = self._plan(groups)
            made = self.build.rows(groups, plan, pool)  # while the rewards are computed
            with self.phases("score"):
                scored = score_step(sampled, batch.bad, self.config, self.loader.processor.coordinates)
            with self.phases("data"):
                rows = [row.to(self.model.device) for row in made]
                count = {"responses": float(sum(len(group.responses) for group in groups))}
                total = reduce_step(count, batch.digest, {"rows": len(plan)}, batch.refused)
        # under ZeRO 2 and 3, which communicate in every pass, as many passes as any rank needs
        passes = int(max(1, total["rows"] if self.config.deepspeed.zero_stage >= 2 else len(plan)))
        responses = max(total["responses"], 1.0)
        features = [
            None if sampled.features is None else ImageFeatures.cat([sampled.features[part.group] for part in parts])
            for parts in plan
        ]
        with self.phases("ref"):
            targets = [self._targets(row, parts, scored) for row, parts in zip(rows, plan, strict=True)]
            if self.reference is not None:
                spare = (self.spare, self.spare_features)
                for target, logp in zip(targets, self.reference.log_probs(rows, features, passes, spare), strict=True):
                    target.ref_logp = logp
        results: list[StepResult] = []
        every: list[list[GrpoOutput]] = []  # of each iteration, of each row
        for iteration in range(self.config.grpo.num_iterations):
            with self.phases("update"):
                outputs: list[GrpoOutput] = []
                result = train_step(self.engine, self._losses(rows, targets, features, passes, responses, outputs))
            results.append(result := result.read())
            every.append(outputs)
            if iteration == 0:  # later iterations measure their ratio against the policy that sampled
                for target, output in zip(targets, outputs, strict=False):
                    target.old_logp = output.logp
        sums["spare_tokens"] = float((passes - len(plan)) * self.spare.num_tokens)
        metrics = reduce_metrics(scored, plan, sums, every)
        metrics["loss"] = distributed.reduce_floats({"loss": sum(r.loss for r in results) / len(results)})["loss"]
        metrics |= {"grad_norm": result.grad_norm, "learning_rate": result.learning_rate}
        metrics["skipped"] = float(not all(r.applied for r in results))
        uids = [sample.record.uid for sample in sampled.samples]
        return Outcome(metrics, rollout_rows(scored, state.step + 1, self.config), scored.bad, state.cursor + 1, uids)

    def _sample(self, batch: Batch[Images], step: int) -> Sampled:
        config, samples = self.config.grpo, batch.samples
        self.rollout.sync_weights(weight_buckets(self.model))
        sampling = Sampling(
            max_new_tokens=config.max_completion_length,
            temperature=config.temperature,
            top_k=config.top_k,
            top_p=config.top_p,
            seed=self.config.run.seed * 1_000_003 + step,
            stop=self.config.rollout.stop_strings,
        )
        images = next((row.built for row in batch.rows), None)
        features = self._encode(samples, images)
        together = ImageFeatures.cat(features) if features else None
        completions = self.rollout.generate(samples, config.num_generations, sampling, together, batch.repeats)
        return Sampled(samples, completions, features)

    def _plan(self, groups: Sequence[Group]) -> tuple[list[list[Part]], dict[str, float]]:
        """Rows of this rank's groups, and what they amount to."""
        budget, sizes = self.config.pack.budget_tokens, [size_of(group) for group in groups]
        plan = plan_rows(sizes, budget)
        copies = Counter(part.group for parts in plan for part in parts)
        for part in (part for parts in plan for part in parts):
            self.over_budget.tell(groups[part.group].sample.record, part.size.tokens, copies[part.group])
        return plan, tally(sizes, [[part.size for part in parts] for parts in plan], budget)

    def _encode(self, samples: Sequence[Sample], images: Images | None) -> list[ImageFeatures] | None:
        """Each sample's image features, made once for rollout, reference and update; None where the tower trains."""
        if self.model.vision_trains:
            return None
        if not samples or images is None:
            return []
        pixels, vision = images
        device = self.model.device
        with torch.no_grad():
            features = self.plain.encode_images(pixels.to(device, non_blocking=True), vision.to(device))
        tokens = iter(vision.image_tokens)
        return features.split([sum(next(tokens) for _ in s.image_grid_thw) for s in samples])

    def _targets(self, row: Row, parts: Sequence[Part], scored: Scored) -> RowTargets:
        """The row's responses' advantages and phi."""
        generations, device = self.config.grpo.num_generations, row.target_ids.device
        index = torch.tensor([part.group * generations + j for part in parts for j in part.responses])
        both = torch.stack([scored.advantages, scored.phi]).index_select(1, index)
        if device.type == "cuda":
            both = both.pin_memory()
        return RowTargets(*both.to(device, non_blocking=True))

    def _losses(
        self,
        rows: list[Row],
        targets: list[RowTargets],
        features: list[ImageFeatures | None],
        passes: int,
        responses: float,
        outputs: list[GrpoOutput],
    ) -> Iterator[torch.Tensor]:
        for index in range(passes):
            if index < len(rows):
                head = grpo_head(rows[index], targets[index], responses, self.loss, self.config.model.kernels)
                output = self.engine(rows[index], head, features[index])
                outputs.append(GrpoOutput(output.loss.detach(), output.metrics, output.logp))
                yield output.loss
            else:  # another rank has more rows: take part with weight 0
                nothing = RowTargets(*torch.zeros(2, 1, device=self.model.device))
                head = grpo_head(self.spare, nothing, 1.0, self.loss, self.config.model.kernels)
                yield self.engine(self.spare, head, self.spare_features).loss * 0.0
