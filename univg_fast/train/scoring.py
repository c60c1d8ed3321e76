"""What the rewards say of completions: scores, advantages and difficulty, on the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np
import torch
from univg_kernels import GrpoConfig, group_advantage

from univg_fast.config import Config
from univg_fast.config.losses import loss_config
from univg_fast.data.coordinates import extents
from univg_fast.model import ImageFeatures
from univg_fast.packing import GroupSize
from univg_fast.packing.vision import without_pixels
from univg_fast.rewards import Scores, Settings, score
from univg_fast.structs import BadRecord, Completion, Group, Sample
from univg_fast.train.choice import Choice, Facts
from univg_fast.train.rows import patch_cost, size_of


class Place(NamedTuple):
    """Of a prompt in the order of drawing, which is the same on any number of ranks."""

    batch: int  # of the loader
    drawn: int  # pseudo-random within the batch
    source: str


@dataclass(frozen=True)
class Sampled:
    """This rank's part of a draw: S prompts with G completions each, in order."""

    samples: list[Sample]
    completions: list[list[Completion]]
    features: list[ImageFeatures] | None  # of each sample, where the tower is frozen


@dataclass(frozen=True)
class Scored:
    """What the rewards say of them; B = S * G."""

    samples: list[Sample]
    completions: list[list[Completion]]
    features: list[ImageFeatures] | None
    scores: Scores
    advantages: torch.Tensor  # [B] fp32, CPU; not yet divided by what the whole step decides
    phi: torch.Tensor  # [B], likewise
    miou: torch.Tensor  # [S]: the group means that phi was made of
    reward_std: torch.Tensor  # [S]
    bad: list[BadRecord]

    def group(self, number: int, responses: Sequence[int]) -> Group:
        """Some of a prompt's responses; the pixels are left behind where the features stand in for them."""
        sample, completions = self.samples[number], self.completions[number]
        if self.features is not None:
            (sample,) = without_pixels([sample])
        return Group(sample, tuple(completions[j].token_ids for j in responses))

    def size(self, number: int, responses: Sequence[int], config: Config) -> GroupSize:
        """Of some of a prompt's responses, as an update costs it: where features stand in, no patch is looked at."""
        patch = 0.0 if self.features is not None else patch_cost(config.model)
        return size_of(self.group(number, responses), patch)

    def varied(self, number: int) -> bool:
        """Whether a prompt's rewards differ: where not, its advantages are 0."""
        return float(self.reward_std[number]) != 0.0

    def counting(self, number: int, masked: bool) -> list[int]:
        """Which of a prompt's responses have a loss. `masked`: those cut short have none."""
        return [j for j, c in enumerate(self.completions[number]) if not (masked and c.finish == "length")]

    def facts(self, number: int, place: Place, config: Config) -> Facts:
        counting = self.counting(number, config.grpo.mask_truncated_completions)
        group = self.completions[number]
        first, every = number * len(group), loss_config(config.grpo).count_empty_responses
        return Facts(
            place,
            self.varied(number) and bool(counting),
            responses=len(group) if every else len(counting),
            tokens=sum(len(group[j].token_ids) for j in counting),
            rewards=tuple(self.scores.total[first : first + len(group)].tolist()),
            phi=float(self.phi[first]),
            cost=self.size(number, counting, config).cost if counting else 0.0,
        )


def concatenated(parts: Sequence[Scored]) -> Scored:
    """Several draws as one."""
    if len(parts) == 1:
        return parts[0]
    scores = [part.scores for part in parts]
    names = scores[0].parts
    both = Scores(
        np.concatenate([s.total for s in scores]),
        {name: np.concatenate([s.parts[name] for s in scores]) for name in names},
        [box for s in scores for box in s.boxes],
    )
    features = None if parts[0].features is None else [f for part in parts for f in part.features or ()]
    tensors = {
        name: torch.cat([getattr(p, name) for p in parts]) for name in ("advantages", "phi", "miou", "reward_std")
    }
    return Scored(
        samples=[sample for part in parts for sample in part.samples],
        completions=[group for part in parts for group in part.completions],
        features=features,
        scores=both,
        bad=[entry for part in parts for entry in part.bad],
        **tensors,
    )


def settled(scored: Scored, choice: Choice, config: GrpoConfig) -> Scored:
    """With what depends on all ranks' groups: the standard deviation of the step's rewards, and the mean of phi."""
    advantages, phi = scored.advantages, scored.phi
    if config.scale_rewards == "batch":
        advantages = advantages / (choice.reward_std + config.advantage_eps)
    if config.normalize_difficulty:
        phi = phi / choice.phi_mean
    return replace(scored, advantages=advantages, phi=phi)


def reward_settings(config: Config) -> Settings:
    """The numbers of the reward terms."""
    rewards, limit = config.rewards, config.rewards.length_limit or config.grpo.max_completion_length
    same = {f.name: getattr(rewards, f.name) for f in fields(Settings) if f.name != "length_limit"}
    return Settings(length_limit=limit, **same)


def score_draw(sampled: Sampled, bad: list[BadRecord], config: Config, coordinates: str) -> Scored:
    """Parse and score every completion; `coordinates`: what the family's box numbers mean."""
    samples, completions, generations = sampled.samples, sampled.completions, config.grpo.num_generations
    texts = [c.text for group in completions for c in group]
    records = [s.record for s in samples for _ in range(generations)]
    ends = (
        None
        if coordinates == "norm1000"
        else [of for s in samples for of in [extents(coordinates, s.sizes, s.resized)] * generations]
    )
    lengths = [len(c.token_ids) for group in completions for c in group]
    scores = score(texts, records, config.rewards.terms, reward_settings(config), lengths, ends)
    loss = loss_config(config.grpo)
    alone = replace(loss, normalize_difficulty=False)  # what depends on other groups is settled later
    if loss.scale_rewards == "batch":
        alone = replace(alone, scale_rewards="none")
    stats = group_advantage(
        torch.from_numpy(scores.total),
        torch.arange(len(samples) + 1) * generations,
        accuracy=torch.from_numpy(scores.parts[config.rewards.difficulty_from]),
        config=alone,
    )
    return Scored(
        samples=samples,
        completions=completions,
        features=sampled.features,
        scores=scores,
        advantages=stats.advantages,
        phi=stats.phi,
        miou=stats.accuracy_mean,
        reward_std=stats.std,
        bad=bad,
    )
