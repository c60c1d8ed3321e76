"""A stage 2 of real parts but for what is sampled, for tests of single steps.

The completions are the record's answer, moved a little; of every other prompt they are all the same, so that its
rewards are, too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from zlib import crc32

import numpy as np
import torch

from tests.conftest import BUILTIN
from univg_fast.config import Config, load_config
from univg_fast.data.samples import Processor
from univg_fast.rollout import Sampling
from univg_fast.structs import Completion, Record, Sample
from univg_fast.train.engine import release
from univg_fast.train.grpo import GrpoStep
from univg_fast.train.making import make_loader, make_policy, make_step
from univg_fast.train.phases import Phases
from univg_fast.train.setup import Inputs

COMMON = {
    **{f"data.builtin.{key}": value for key, value in BUILTIN.items()},
    "stages": ["grpo"],
    "data.prompt_template": "short",
    "model.freeze_vision_tower": True,
    "pack.budget_tokens": 75,  # a row for each group or less
    "grpo.max_steps": 4,
    "grpo.prompts_per_step": 4,
    "grpo.num_generations": 3,
    "grpo.max_completion_length": 64,
    "grpo.learning_rate": 1e-3,
    "grpo.adam_epsilon": 1e-3,
    "grpo.weight_decay": 0.1,
    "grpo.loss_type": "dapo",
}
Varied = Callable[[Record, int], bool]  # (record, seed of the draw) -> whether its rewards differ


def every_other(record: Record, seed: int) -> bool:
    return crc32(f"{record.uid} {seed}".encode()) % 2 == 0


class Replay:
    """A rollout engine that knows the answers."""

    def __init__(self, tokenizer: Any, end: int, varied: Varied) -> None:
        self.tokenizer, self.end, self.varied = tokenizer, end, varied
        self.seeds: list[int] = []
        self.got: set[str] = set()  # weights

    def sync_weights(self, buckets: Iterable[Mapping[str, torch.Tensor]]) -> None:
        self.got |= {name for bucket in buckets for name in bucket}

    def generate(
        self,
        samples: Sequence[Sample],
        num_generations: int,
        sampling: Sampling,
        features: Any = None,
        repeats: Sequence[int] | None = None,
    ) -> list[list[Completion]]:
        self.seeds.append(sampling.seed)
        return [self._group(sample.record, num_generations, sampling.seed) for sample in samples]

    def _group(self, record: Record, count: int, seed: int) -> list[Completion]:
        (x1, y1, x2, y2), group = record.box or (0, 0, 9, 9), []
        for number in range(count):
            off = 20 * number if self.varied(record, seed) else 0
            text = f"<think>it is here</think><answer>({x1},{y1}),({x2},{max(y1 + 1, y2 - off)})</answer>"
            ids = np.array([*self.tokenizer.encode(text), self.end], np.int64)
            group.append(Completion(ids, np.zeros(len(ids), np.float32), "stop", text))
        return group


class Stage:
    """A fresh policy and its steps, as the command makes them; `Replay` samples."""

    def __init__(self, inputs: Inputs, config: Config, varied: Varied = every_other) -> None:
        self.phases = Phases()
        self.engine, plain = make_policy("grpo", config, inputs, config.model.path, torch.device("cpu"))
        self.loader = make_loader("grpo", config, inputs, self.engine.module)
        made = (config, inputs, config.model.path, torch.device("cpu"), self.engine, plain, self.loader, self.phases)
        self.step: GrpoStep = make_step("grpo", *made)  # type: ignore[assignment]
        processor: Processor = inputs.processor
        self.rollout = Replay(processor.tokenizer, processor.end_token_id, varied)
        self.step.draws.rollout = self.rollout

    def weights(self) -> torch.Tensor:
        return torch.cat([p.detach().flatten().clone() for p in self.engine.module.parameters()])

    def close(self) -> None:
        self.loader.close()
        release(self.engine)


def settings(**given: Any) -> Config:
    both = COMMON | {key.replace("__", "."): value for key, value in given.items()}
    words = (f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in both.items())
    return load_config(["--config", "demo", *words])
