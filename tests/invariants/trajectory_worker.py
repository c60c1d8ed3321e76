"""Run by test_trajectories.py, under torchrun: `trajectory_worker.py FOLDER NAME [NAME ...]`, names of JOBS.

Each job is one stage in this process, as the command runs it, in FOLDER/NAME: metrics.jsonl, and hf/ with the weights.
Stage 2 is given its completions instead of sampling them: the record's answer, moved a little, and cut short. Sampling
would turn a difference of rounding into other tokens, and then nothing could be compared.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import plain_sft
import torch

from tests.conftest import BUILTIN
from univg_fast import distributed
from univg_fast.config import load_config
from univg_fast.model import PackedModel
from univg_fast.rollout import LocalEngine, Sampling
from univg_fast.structs import Completion, Record, Sample
from univg_fast.train.setup import prepare
from univg_fast.train.stage import run_stage

STEPS = 8
COMMON = {
    **{f"data.builtin.{key}": value for key, value in BUILTIN.items()},
    "data.prompt_template": "short",
    "pack.window": 0,  # the same samples in a step, whatever the rows
    "pack.budget_tokens": 4096,  # one row
    "save.steps": 0,
    "log.rollout_steps": 1,
    # AdamW's first steps are nearly the sign of a gradient: of one that is rounding alone, too. With this epsilon a
    # step is proportional to its gradient
    "sft.adam_epsilon": 1e-3,
    "grpo.adam_epsilon": 1e-3,
}
SFT = COMMON | {"stages": ["sft"], "sft.max_steps": STEPS, "sft.per_step_samples": 8, "sft.learning_rate": 2e-3}
GRPO = COMMON | {
    "stages": ["grpo"],
    "model.freeze_vision_tower": True,
    "grpo.max_steps": STEPS,
    "grpo.prompts_per_step": 4,
    "grpo.num_generations": 4,
    "grpo.num_iterations": 2,  # so that ratios are not all 1
    "grpo.learning_rate": 3e-4,
    "grpo.max_completion_length": 64,
    "grpo.beta": 0.04,
}
APART = {"pack.budget_tokens": 80}  # a row for each sample, in stage 2 for each response with a prompt of its own
VARIANTS: dict[str, dict[str, Any]] = {
    "again": {},
    "two workers": {"data.num_workers": 2},
    "other seed": {"run.seed": 1},
    "two rows": {"pack.budget_tokens": 400},
    "apart": {"pack.budget_tokens": 1},  # a row for each sample; in stage 2 for each response, with a prompt of its own
    "checkpointing": {"model.gradient_checkpointing": True},
    "kernels": {"model.kernels": "reference"},
    "dense": {"model.attention": "dense"},
    "images again": {},  # encoded in each pass, instead of once for rollout, reference and update
    "plain": {},  # plain_sft.py
    **{f"zero {stage}": {"deepspeed.zero_stage": stage, "pack.budget_tokens": 200} for stage in range(4)},
}
JOBS = {"sft": SFT, "grpo": GRPO} | {
    f"{stage} {name}": job | settings
    for stage, job in (("sft", SFT), ("grpo", GRPO))
    for name, settings in VARIANTS.items()
}


def completions_of(record: Record, count: int, rng: np.random.Generator) -> list[str]:
    """Of a right answer: the first one right, others off by some hundredths; one of them is cut in the middle."""
    x1, y1, x2, y2 = record.box or (0, 0, 9, 9)
    texts = []
    for number in range(count):
        dx, dy = rng.integers(-60, 61, 2) * (number > 0)
        box = f"({max(0, x1 + dx)},{max(0, y1 + dy)}),({min(1000, x2 + dx)},{min(1000, y2 + dy)})"
        text = f"<think>it is image {rng.integers(1, 3)}</think><answer>{box}</answer>"
        texts.append(text[: len(text) // 2] if number == 1 else text)
    return texts


def completing(sampled: Callable[..., Any]) -> Callable[..., Any]:
    """Stands in for `LocalEngine.generate` in a step; the check before the first step samples."""

    def generate(
        self: LocalEngine,
        samples: Sequence[Sample],
        num_generations: int,
        sampling: Sampling,
        features: Any = None,
        repeats: Sequence[int] | None = None,
    ) -> list[list[Completion]]:
        if repeats is None:
            return sampled(self, samples, num_generations, sampling, features)  # type: ignore[no-any-return]
        found = []
        for sample, repeat in zip(samples, repeats, strict=True):
            rng = np.random.default_rng([sampling.seed, repeat, *sample.record.uid.encode()])
            group = []
            for text in completions_of(sample.record, num_generations, rng):
                ids = np.array([*self.tokenizer.encode(text), self.stop[0]], np.int64)
                group.append(Completion(ids, np.zeros(len(ids), np.float32), "stop", text))
            found.append(group)
        return found

    return generate


def run(name: str, folder: Path) -> None:
    settings = JOBS[name] | {"run.dir": str(folder)}
    given = (f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in settings.items())
    config = load_config(["--config", "demo", *given])
    (stage,) = config.stages
    folder.mkdir(parents=True, exist_ok=True)
    inputs = prepare(config, folder)
    torch.manual_seed(config.run.seed)
    if name == "sft plain":
        plain_sft.train(config, inputs, folder)
    else:
        run_stage(stage, config, inputs, config.model.path, folder, torch.device("cpu"))


def main() -> None:
    folder, *names = sys.argv[1:]
    distributed.init()
    LocalEngine.generate = completing(LocalEngine.generate)  # type: ignore[method-assign]
    trains = PackedModel.vision_trains
    for name in names:
        # a frozen tower that is taken for one that trains: no features are kept
        again = name.endswith("images again")
        PackedModel.vision_trains = property(lambda _: True) if again else trains  # type: ignore[method-assign,assignment]
        with open(f"{folder}/{name}.log", "w") as log, redirect_stdout(log), redirect_stderr(log):
            run(name, Path(folder) / name)


if __name__ == "__main__":
    distributed.run(main)
