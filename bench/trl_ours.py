"""This trainer's side of `bench.trl_step`: its own step, engine, loader and rollout."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from univg_fast import distributed
from univg_fast.config import Config
from univg_fast.config.schema import DataConfig, DeepSpeedConfig, GrpoStageConfig, RewardsConfig
from univg_fast.data.loader import SampleLoader
from univg_fast.data.samples import Processor, make_sample
from univg_fast.model.features import ImageFeatures
from univg_fast.rollout import LocalEngine, RolloutEngine, Sampling
from univg_fast.structs import Completion, Record, Sample
from univg_fast.train.engine import make_engine
from univg_fast.train.grpo import GrpoStep
from univg_fast.train.phases import Phases
from univg_fast.train.reference import make_reference
from univg_fast.train.rows import Builder
from univg_fast.train.setup import load_policy
from univg_fast.train.state import StageState

from .rollout import Size
from .trl_problem import TERMS


class Replay:
    """A rollout engine that gives what TRL sampled: {a prompt's ids: completions [G, R]}."""

    def __init__(self, tokenizer: Any, found: dict[bytes, list[np.ndarray]]) -> None:
        self.tokenizer, self.found = tokenizer, found

    def sync_weights(self, buckets: Any) -> None:
        """There are none."""

    def generate(
        self,
        samples: Sequence[Sample],
        num_generations: int,
        sampling: Sampling,
        features: Sequence[ImageFeatures] | None = None,
        repeats: Sequence[int] | None = None,
    ) -> list[list[Completion]]:
        def completion(ids: np.ndarray) -> Completion:
            return Completion(ids, np.zeros(len(ids), np.float32), "length", self.tokenizer.decode(ids))

        return [[completion(ids) for ids in self.found[s.prompt_ids.tobytes()]] for s in samples]


class Ours:
    """This trainer's step. `rollout` may be put into its place by the proof."""

    def __init__(
        self, size: Size, folder: Path, records: list[Record], processor: Processor, weights: Any, on_gpu: bool = False
    ) -> None:
        if not on_gpu:
            os.environ["DS_ACCELERATOR"] = "cpu"  # also where there is a GPU
        device = distributed.init()
        self.config, self.processor = make_config(size), processor
        policy = load_policy(self.config, processor, str(folder), device)
        policy.model.load_state_dict(weights)
        self.policy = policy
        engine = make_engine(policy.train(), self.config.grpo, self.config.deepspeed, 1000)
        reference = make_reference(self.config, processor, str(folder), device, engine, policy)
        loader: Any = SampleLoader(
            records,
            processor,
            size.prompts,
            seed=0,
            with_response=False,
            build=partial(Builder.of(policy).images, budget=self.config.pack.budget_tokens),
            prefetch=0,
            cache_bytes=0,
        )
        self.samples = [make_sample(r, processor, with_response=False) for r in records]
        self.timed, self.phases = Phases(), dict[str, float]()
        engine_of_rollout = LocalEngine(policy, processor.tokenizer, stop_token_id=-1)
        more = (policy, reference, self.samples[0], self.timed)
        self.step = GrpoStep(self.config, engine, loader, engine_of_rollout, *more)
        self.check = self.step.check(self.samples[0])
        self.steps = 0

    def __call__(self, rollout: RolloutEngine | None = None) -> dict[str, float]:
        usual = self.step.draws.rollout
        self.step.draws.rollout = rollout or usual
        outcome = self.step(StageState(self.steps, self.steps))
        assert outcome is not None
        metrics, bad = outcome.metrics, outcome.bad
        self.step.draws.rollout, took = usual, self.timed.take()
        self.phases = took | {"update": took["update"] + took["optim"]}  # as TRL's is timed
        self.steps += 1
        assert not bad, bad
        return metrics


def make_config(size: Size) -> Config:
    """The trainer's settings; TRL's are in `make_trainer`."""
    grpo = GrpoStageConfig(
        lr_scheduler_type="constant",
        num_generations=size.group,
        prompts_per_step=size.prompts,
        max_completion_length=size.tokens,
        difficulty="none",  # TRL knows none
    )
    return Config(
        stages=("grpo",),
        data=DataConfig(num_workers=2, prompt_template="short"),
        grpo=grpo,
        rewards=RewardsConfig(terms=dict(TERMS)),
        deepspeed=DeepSpeedConfig(zero_stage=0),
    )
