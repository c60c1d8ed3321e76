"""What the rewards say of a step's completions: scores, advantages and difficulty, on the host."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from univg_kernels import GrpoConfig, group_advantage

from univg_fast.config import Config
from univg_fast.data.coordinates import extents
from univg_fast.model import ImageFeatures
from univg_fast.packing.vision import without_pixels
from univg_fast.rewards import Scores, Settings, score
from univg_fast.structs import BadRecord, Completion, Group, Sample


@dataclass(frozen=True)
class Sampled:
    """This rank's part of a step: S prompts with G completions each, in order."""

    samples: list[Sample]
    completions: list[list[Completion]]
    features: list[ImageFeatures] | None  # of each sample, where the tower is frozen

    def groups(self) -> list[Group]:
        """Their groups; the pixels are left behind where the features stand in for them."""
        samples = self.samples if self.features is None else without_pixels(self.samples)
        pairs = zip(samples, self.completions, strict=True)
        return [Group(sample, tuple(c.token_ids for c in completions)) for sample, completions in pairs]


@dataclass(frozen=True)
class Scored:
    """What the rewards say of them; B = S * G."""

    samples: list[Sample]
    completions: list[list[Completion]]
    scores: Scores
    advantages: torch.Tensor  # [B] fp32, CPU
    phi: torch.Tensor  # [B]
    miou: torch.Tensor  # [S]: the group means that phi was made of
    reward_std: torch.Tensor  # [S]
    bad: list[BadRecord]


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
        scale_rewards=grpo.scale_rewards,
    )


def reward_settings(config: Config) -> Settings:
    """The numbers of the reward terms."""
    rewards, limit = config.rewards, config.rewards.length_limit or config.grpo.max_completion_length
    same = {f.name: getattr(rewards, f.name) for f in fields(Settings) if f.name != "length_limit"}
    return Settings(length_limit=limit, **same)


def score_step(sampled: Sampled, bad: list[BadRecord], config: Config, coordinates: str) -> Scored:
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
    offsets = torch.arange(len(samples) + 1) * generations
    stats = group_advantage(
        torch.from_numpy(scores.total),
        offsets,
        accuracy=torch.from_numpy(scores.parts[config.rewards.difficulty_from]),
        config=loss_config(config),
    )
    return Scored(samples, completions, scores, stats.advantages, stats.phi, stats.accuracy_mean, stats.std, bad)
