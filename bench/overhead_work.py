"""A step of the trainer without model, optimizer and rollout, at the shapes of a 2B model; and that model's FLOPs."""

from __future__ import annotations

import tempfile
import time
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from univg_kernels import GrpoOutput
from univg_kernels.metrics import METRICS

from univg_fast.config import Config, load_config
from univg_fast.data.loader import Batch, LoadedRow
from univg_fast.model import ImageFeatures, PackedModel
from univg_fast.model.families.qwen2_vl import CLASSES, family
from univg_fast.model.load import freeze_vision
from univg_fast.packing.plan import plan_rows
from univg_fast.structs import Completion, Sample, Target
from univg_fast.train.bad import BadRecords
from univg_fast.train.grpo import GrpoStep
from univg_fast.train.metrics import MetricsLogger
from univg_fast.train.phases import Phases
from univg_fast.train.reference import Reference
from univg_fast.train.rows import Builder, sft_group, size_of
from univg_fast.train.sft import SftStep
from univg_fast.train.stage import write_rollouts
from univg_fast.train.state import StageState
from univg_fast.train.throughput import StepFlops, Throughput

from .rollout import PAD, Size, make_model, make_samples

SHAPE = {"images": 4, "image_tokens": 529, "text_tokens": 120, "response_tokens": 200, "parameters": 2.2e9}
TEXT = {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12}
TEXT |= {"num_key_value_heads": 2, "vocab_size": 151_936, "tie_word_embeddings": True}
VISION = {"depth": 32, "embed_dim": 1280, "num_heads": 16, "hidden_size": 1536}
THINK = "the second image shows the same street a little later and the red car from the first one has moved "
SIZE = Size(prompts=24, images=4, side=46, text=120, hidden=64, layers=1, vocab=300)


def config_of(stage: str) -> Config:
    """The published recipe: bfloat16, frozen tower."""
    name = {"sft": "univg_r1_stage1", "grpo": "univg_r1_stage2"}[stage]
    return load_config(["--config", name, "--log.rollout_steps=1"])


def step_flops(stage: str, text: dict[str, Any] = TEXT, vision: dict[str, Any] = VISION) -> StepFlops:
    """Of Qwen2-VL-2B or another one of that family, whose weights are never made. The tower is frozen."""
    with torch.device("meta"):
        model = CLASSES[1]._from_config(CLASSES[0](text_config=text, vision_config=vision))
    model.tie_weights()
    freeze_vision(model)
    packed: Any = SimpleNamespace(model=model, family=family(model.config), vision_trains=False)
    return StepFlops.of(packed, stage, config_of(stage))


class AtOnce:
    """Engine, rollout and vision tower in one: each answers at once, with what has the right shape."""

    def __init__(self, model: PackedModel, completions: list[Completion]) -> None:
        self.module, self.device, self.completions = model, torch.device("cpu"), completions

    def __call__(self, row: Any, head: Any, features: Any = None) -> Any:
        logp = torch.zeros(len(row.target_ids))
        metrics = torch.zeros(len(METRICS))
        metrics[METRICS.index("num_tokens")] = len(logp)
        output = GrpoOutput(torch.zeros(()), metrics, logp)
        return (output.loss, logp) if head.__qualname__.startswith("sft") else output

    def backward(self, loss: Any, **_: Any) -> None: ...
    def step(self) -> None: ...
    def sync_weights(self, buckets: Any) -> None: ...
    def get_lr(self) -> list[float]:
        return [1e-6]

    def get_global_grad_norm(self) -> torch.Tensor:
        return torch.ones(())

    def was_step_applied(self) -> bool:
        return True

    def generate(self, samples: list[Sample], count: int, *_: Any) -> list[list[Completion]]:
        return [self.completions[:count] for _ in samples]

    def encode_images(self, pixels: Any, vision: Any) -> ImageFeatures:
        return ImageFeatures(torch.zeros(sum(vision.image_tokens), 1))


@dataclass
class Loaded:
    """A SampleLoader whose threads have already made what the step asks for."""

    made: Batch[Any]
    batch_size: int
    processor: Any

    def batch(self, number: int) -> Batch[Any]:
        return self.made


def samples_of(count: int) -> list[Sample]:
    rng, found = np.random.default_rng(0), []
    for i, sample in enumerate(make_samples(replace(SIZE, prompts=count))):
        target = (Target((100, 200, 300 + i, 400), 1),)
        record = replace(sample.record, images=("a/b.jpg",) * SIZE.images, question=THINK * 3, targets=target)
        response = rng.integers(5, SIZE.vocab, SHAPE["response_tokens"]).astype(np.int64)
        found.append(replace(sample, record=record, response_ids=response, sizes=((644, 644),) * SIZE.images))
    return found


def completions() -> list[Completion]:
    rng = np.random.default_rng(1)
    boxes = [f"({100 + 20 * j},200),({300 + 20 * j},400)" for j in range(8)]
    return [
        Completion(
            rng.integers(5, SIZE.vocab, SHAPE["response_tokens"] + j).astype(np.int64),
            rng.standard_normal(SHAPE["response_tokens"] + j).astype(np.float32),
            "stop",
            f"<think>{THINK * 9}</think><answer>{box}</answer>",
        )
        for j, box in enumerate(boxes)
    ]


def make_step(stage: str, config: Config) -> Any:
    model, _ = make_model(SIZE, torch.device("cpu"))
    freeze_vision(model.model)
    build, samples = (
        Builder.of(model),
        samples_of(config.sft.per_step_samples if stage == "sft" else config.grpo.prompts_per_step),
    )
    engine = AtOnce(model, completions())
    if stage == "sft":
        plan = plan_rows([size_of(sft_group(s)) for s in samples], config.pack.budget_tokens)
        parts = [[samples[part.group] for part in row] for row in plan]
    else:
        parts = [samples]
    budget = config.pack.budget_tokens
    made = [build.sft_row(of) if stage == "sft" else build.images(of, budget) for of in parts]
    rows = [LoadedRow(of, [0] * len(of), built, []) for of, built in zip(parts, made, strict=True)]
    loader: Any = Loaded(
        Batch(rows, [], len(rows), 0, []), len(samples), SimpleNamespace(end_token_id=PAD, coordinates="norm1000")
    )
    if stage == "sft":
        return SftStep(config, engine, loader, samples[0], Phases())
    reference = Reference(lambda row, *_: torch.zeros(len(row.target_ids)), model, 1.0, "auto", "")
    tower: Any = engine
    return GrpoStep(config, engine, loader, tower, tower, reference, samples[0], Phases())


def cpu_seconds(stage: str, rounds: int) -> tuple[list[float], dict[str, float]]:
    """CPU seconds of all threads for each of `rounds` steps with all that follows a step, and the step's metrics."""
    config, state = config_of(stage), StageState()
    step, found = make_step(stage, config), []
    with tempfile.TemporaryDirectory() as name, redirect_stdout(StringIO()):
        folder, metrics = Path(name), {}
        bad = BadRecords(1.0, state, folder, stage)
        throughput = Throughput(step_flops(stage), None)
        with MetricsLogger(folder, stage, rounds + 1, 0, config.log, throughput) as logger:
            for number in range(1, rounds + 2):
                began = time.process_time()
                outcome = step(state)
                metrics = outcome.metrics
                bad.tell(outcome.bad)
                bad.count(metrics["bad_records"], 1)
                if stage == "grpo":
                    write_rollouts(folder, stage, number, outcome.rollouts())
                logger.log(number, metrics, step.phases.take())
                found.append(time.process_time() - began)
    return found[1:], metrics
