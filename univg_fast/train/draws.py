"""Prompts, their completions and rewards: one batch of the loader, or (DAPO) several until enough rewards differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from zlib import crc32

import torch
from univg_kernels import GrpoConfig

from univg_fast import distributed
from univg_fast.config import Config
from univg_fast.data.loader import Batch, SampleLoader
from univg_fast.data.mix import turn
from univg_fast.model import ImageFeatures, PackedModel
from univg_fast.rollout import RolloutEngine, Sampling
from univg_fast.structs import BadRecord, Sample
from univg_fast.train import stopping
from univg_fast.train.choice import Choice, Facts, choose, enough
from univg_fast.train.moving import move
from univg_fast.train.phases import Phases
from univg_fast.train.rows import Look
from univg_fast.train.scoring import Place, Sampled, Scored, concatenated, score_draw, settled

Images = tuple[Look, ...]  # of a rank's prompts, in passes that fit the memory


@dataclass(frozen=True)
class Drawn:
    """All that this rank drew for a step, and what of it the step trains on."""

    scored: Scored
    trained: Scored  # the same, and what came from other ranks: what `choice.shares` number
    choice: Choice
    cursor: int  # the loader's batch to draw next
    draws: int
    digest: int  # of what all ranks were to draw
    refused: list[BadRecord]

    def without_features(self) -> Drawn:
        """For once rows have copies of those they need: all draws' take memory that the update could use."""
        scored, trained = (replace(held, features=None) for held in (self.scored, self.trained))
        return replace(self, scored=scored, trained=trained)


@dataclass
class Draws:
    """Call it with the loader's batch to begin with; None where a stop request ended it. Collective.

    `plain`: the policy in one piece, whose vision tower any rank may run at any time; None: the tower trains, so that
    there are no features to keep.
    """

    config: Config
    loss: GrpoConfig
    loader: SampleLoader[Images]
    rollout: RolloutEngine
    plain: PackedModel | None
    phases: Phases

    def __call__(self, cursor: int) -> Drawn | None:
        grpo = self.config.grpo
        wanted = grpo.prompts_per_step if grpo.dynamic_sampling_max_draws > 1 else None
        parts: list[Scored] = []
        batches: list[Batch[Images]] = []
        known: list[list[Facts]] = [[] for _ in range(distributed.world_size())]
        for number in range(grpo.dynamic_sampling_max_draws):
            with self.phases("data"):
                batch = self.loader.batch(cursor + number)
            with self.phases("gen"):
                sampled = self._sample(batch, cursor + number)
            if stopping.agreed():  # a rollout that is asked to stop returns what it has at once
                return None
            with self.phases("score"):
                scored = score_draw(sampled, batch.bad, self.config, self.loader.processor.coordinates)
            parts.append(scored)
            batches.append(batch)
            found = distributed.gather_objects(self._facts(scored, batch.repeats, cursor + number))
            for mine, more in zip(known, found, strict=True):
                mine += more
            if wanted is None or enough(known, wanted):
                break
        choice = choose(known, distributed.rank(), grpo.steps_per_generation, wanted)
        scored = settled(concatenated(parts), choice, self.loss)
        with self.phases("data"):
            trained = move(scored, choice, None if self.plain is None else self.plain.device)
        return Drawn(
            scored=scored,
            trained=trained,
            choice=choice,
            cursor=cursor + len(parts),
            draws=len(parts),
            digest=crc32(repr([batch.digest for batch in batches]).encode()),
            refused=[entry for batch in batches for entry in batch.refused],
        )

    def _sample(self, batch: Batch[Images], number: int) -> Sampled:
        """`number`: of the loader's batch. The sampler's numbers follow from it."""
        config, samples = self.config.grpo, batch.samples
        sampling = Sampling(
            max_new_tokens=config.max_completion_length,
            temperature=config.temperature,
            top_k=config.top_k,
            top_p=config.top_p,
            seed=self.config.run.seed * 1_000_003 + number,
            stop=self.config.rollout.stop_strings,
        )
        features = None
        if self.plain is not None:
            features = encode(self.plain, samples, next((row.built for row in batch.rows if row.built is not None), ()))
        completions = self.rollout.generate(samples, config.num_generations, sampling, features, batch.repeats)
        return Sampled(samples, completions, features)

    def _facts(self, scored: Scored, repeats: Sequence[int], number: int) -> list[Facts]:
        """Of this rank's groups of the loader's batch. Their places must not hang on which rank has them."""
        facts = []
        for group, (sample, repeat) in enumerate(zip(scored.samples, repeats, strict=True)):
            drawn = turn(self.config.run.seed, number, sample.record.uid, repeat)
            facts.append(scored.facts(group, Place(number, drawn, sample.record.source), self.config))
        return facts


def encode(model: PackedModel, samples: Sequence[Sample], images: Images) -> list[ImageFeatures]:
    """Each sample's image features, made once for rollout, reference and update."""
    tokens = iter([n for look in images for n in look.vision.image_tokens])
    counts = iter([sum(next(tokens) for _ in sample.image_grid_thw) for sample in samples])
    found: list[ImageFeatures] = []
    for look in images:
        with torch.no_grad():
            pixels = look.pixels.to(model.device, non_blocking=True)
            features = model.encode_images(pixels, look.vision.to(model.device))
        found += features.split([next(counts) for _ in range(look.samples)])
    return found
