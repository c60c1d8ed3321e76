"""One step of stage 2: rollout, rewards, advantages and difficulty, reference, and the policy update.

The global batch of prompts is the loader's; each rank works on its share. All normalisers are global, so that the same
prompts give the same loss on any number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from univg_kernels import GrpoConfig, GrpoOutput, group_advantage

from univg_fast import distributed
from univg_fast.config import Config
from univg_fast.data.loader import SampleLoader
from univg_fast.data.modeltext import from_model
from univg_fast.loss import grpo_head, logprob_head
from univg_fast.loss.grpo import RowTargets
from univg_fast.model import ImageFeatures, PackedModel
from univg_fast.packing import Row, build_row
from univg_fast.packing.vision import stack_images
from univg_fast.rewards import Scores, Settings, score
from univg_fast.rollout import LocalEngine, Sampling
from univg_fast.structs import BadRecord, Completion, Group, Sample
from univg_fast.train.engine import StepResult, train_step
from univg_fast.train.grpo_log import reduce_metrics, rollout_rows
from univg_fast.train.rows import Phases, pack_groups, rows_needed
from univg_fast.train.zero import weight_buckets


@dataclass(frozen=True)
class Scored:
    """This rank's part of a step: S prompts with G completions each, in order; B = S * G."""

    samples: list[Sample]
    completions: list[list[Completion]]
    scores: Scores
    advantages: torch.Tensor  # [B] fp32, CPU
    phi: torch.Tensor  # [B]
    miou: torch.Tensor  # [S]: the group means that phi was made of
    reward_std: torch.Tensor  # [S]
    bad: list[BadRecord]
    features: list[ImageFeatures] | None  # of each sample, where the tower is frozen


def loss_config(config: Config) -> GrpoConfig:
    """The stage's settings as the loss kernels take them."""
    grpo = config.grpo
    return GrpoConfig(
        loss_type=grpo.loss_type,
        epsilon_low=grpo.epsilon_low,
        epsilon_high=grpo.epsilon_high,
        beta=grpo.beta,
        temperature=grpo.temperature,
        difficulty=grpo.difficulty,
        scale_rewards="group" if grpo.scale_rewards else "none",
    )


def reward_settings(config: Config) -> Settings:
    """The numbers of the reward terms."""
    rewards, limit = config.rewards, config.rewards.length_limit or config.grpo.max_completion_length
    same = {f.name: getattr(rewards, f.name) for f in fields(Settings) if f.name != "length_limit"}
    return Settings(length_limit=limit, **same)


class GrpoStep:
    """Call it with a step's number: (metrics, equal on all ranks; this rank's rollout lines; its bad records)."""

    def __init__(
        self,
        config: Config,
        engine: Any,
        loader: SampleLoader,
        rollout: LocalEngine,
        reference: PackedModel | None,
        spare: Sample,
        phases: Phases,
    ) -> None:
        self.config, self.engine, self.loader = config, engine, loader
        self.rollout, self.reference, self.phases = rollout, reference, phases
        self.model: PackedModel = engine.module
        self.loss = loss_config(config)
        stop = np.array([rollout.stop], np.int64)
        self.spare = build_row([Group(spare, (stop,))], self.model.family).to(self.model.device)
        encoded = self._encode([spare])
        self.spare_features = encoded[0] if encoded else None

    def __call__(self, step: int) -> tuple[dict[str, float], list[dict[str, Any]], list[BadRecord]]:
        scored = self._rollout(step)
        with self.phases("data"):
            groups = [
                Group(sample, tuple(c.token_ids for c in completions))
                for sample, completions in zip(scored.samples, scored.completions, strict=True)
            ]
            rows = pack_groups(groups, self.model.family, self.config.pack.budget_tokens, self.model.device)
            count = {"responses": float(sum(len(g.responses) for g in groups))}
            responses = max(distributed.reduce_floats(count)["responses"], 1.0)
        features = [
            None if scored.features is None else ImageFeatures.cat([scored.features[i] for i in r.groups]) for r in rows
        ]
        with self.phases("ref"):
            targets = [self._targets(row, scored, feature) for row, feature in zip(rows, features, strict=True)]
        results: list[StepResult] = []
        every: list[list[GrpoOutput]] = []  # of each iteration, of each row
        for iteration in range(self.config.grpo.num_iterations):
            with self.phases("update"):
                outputs: list[GrpoOutput] = []
                result = train_step(self.engine, self._losses(rows, targets, features, responses, outputs))
            results.append(result)
            every.append(outputs)
            if iteration == 0:  # later iterations measure their ratio against the policy that sampled
                for target, output in zip(targets, outputs, strict=False):
                    target.old_logp = output.logp
        metrics = reduce_metrics(scored, rows, every, self.config)
        metrics["loss"] = distributed.reduce_floats({"loss": sum(r.loss for r in results) / len(results)})["loss"]
        metrics |= {"grad_norm": result.grad_norm, "learning_rate": result.learning_rate}
        metrics["skipped"] = float(not all(r.applied for r in results))
        return metrics, rollout_rows(scored, step + 1), scored.bad

    def _rollout(self, step: int) -> Scored:
        config = self.config.grpo
        with self.phases("data"):
            samples, bad = self.loader.batch(step)
        with self.phases("rollout"):
            self.rollout.sync_weights(weight_buckets(self.model))
            sampling = Sampling(
                max_new_tokens=config.max_completion_length,
                temperature=config.temperature,
                top_k=config.top_k,
                top_p=config.top_p,
                seed=self.config.run.seed * 1_000_003 + step,
            )
            features = self._encode(samples)
            together = ImageFeatures.cat(features) if features else None
            completions = self.rollout.generate(samples, config.num_generations, sampling, together)
        with self.phases("reward"):
            system = self.loader.processor.coordinates
            texts = [
                from_model(c.text, system, s.sizes, s.resized)
                for s, group in zip(samples, completions, strict=True)
                for c in group
            ]
            records = [s.record for s in samples for _ in range(config.num_generations)]
            lengths = [len(c.token_ids) for group in completions for c in group]
            scores = score(texts, records, self.config.rewards.terms, reward_settings(self.config), lengths)
            offsets = torch.arange(len(samples) + 1) * config.num_generations
            stats = group_advantage(
                torch.from_numpy(scores.total),
                offsets,
                accuracy=torch.from_numpy(scores.parts[self.config.rewards.difficulty_from]),
                config=self.loss,
            )
        return Scored(
            samples, completions, scores, stats.advantages, stats.phi, stats.accuracy_mean, stats.std, bad, features
        )

    def _encode(self, samples: Sequence[Sample]) -> list[ImageFeatures] | None:
        """Each sample's image features, made once for rollout, reference and update; None where the tower trains."""
        if not self.config.model.freeze_vision_tower:
            return None
        if not samples:
            return []
        pixels, vision = stack_images(samples, self.model.family)
        with torch.no_grad():
            features = self.rollout.model.encode_images(pixels.to(self.model.device), vision.to(self.model.device))
        tokens = iter(vision.image_tokens)
        return features.split([sum(next(tokens) for _ in s.image_grid_thw) for s in samples])

    def _targets(self, row: Row, scored: Scored, features: ImageFeatures | None) -> RowTargets:
        """The row's responses' advantages and phi, and the reference's log-probs."""
        generations = self.config.grpo.num_generations
        index = torch.tensor([g * generations + j for g in row.groups for j in range(generations)])
        targets = RowTargets(
            scored.advantages[index].to(row.target_ids.device), scored.phi[index].to(row.target_ids.device)
        )
        if self.reference is not None:
            with torch.no_grad():
                targets.ref_logp = self.reference(row, logprob_head(row, self.config.grpo.temperature), features)
        return targets

    def _losses(
        self,
        rows: list[Row],
        targets: list[RowTargets],
        features: list[ImageFeatures | None],
        responses: float,
        outputs: list[GrpoOutput],
    ) -> Iterator[torch.Tensor]:
        for index in range(rows_needed(len(rows), self.config.deepspeed.zero_stage)):
            if index < len(rows):
                head = grpo_head(rows[index], targets[index], responses, self.loss)
                output = self.engine(rows[index], head, features[index])
                outputs.append(GrpoOutput(output.loss.detach(), output.metrics, output.logp))
                yield output.loss
            else:  # another rank has more rows: take part with weight 0
                nothing = RowTargets(*torch.zeros(2, 1, device=self.model.device))
                head = grpo_head(self.spare, nothing, 1.0, self.loss)
                yield self.engine(self.spare, head, self.spare_features).loss * 0.0
