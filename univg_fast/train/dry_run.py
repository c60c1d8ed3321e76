"""`run.dry_run`: what a run does up to its first step, on one batch of each stage; nothing of it is left.

Data, models, engine, rows, losses and the optimizer's step are the run's own. Of stage 2 only the completions are
made up: a few tokens are sampled, repeated up to grpo.max_completion_length, so that the update is as large as it can
be, and the first of each group counts as the right answer, so that rewards differ.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from univg_fast import distributed
from univg_fast.config import Config
from univg_fast.data.mix import mix_of
from univg_fast.data.prompts import target_text
from univg_fast.model import ImageFeatures
from univg_fast.rollout import RolloutEngine, Sampling
from univg_fast.structs import Completion, Sample
from univg_fast.train import sinks
from univg_fast.train.console import clock
from univg_fast.train.crash import out_of_memory_told
from univg_fast.train.engine import free_memory, release
from univg_fast.train.grpo import GrpoStep
from univg_fast.train.making import make_loader, make_policy, make_step, total_steps
from univg_fast.train.memory import Load, memory
from univg_fast.train.overfit import overfit
from univg_fast.train.phases import Phases
from univg_fast.train.previous import settle
from univg_fast.train.setup import Inputs, prepare
from univg_fast.train.shapes import shape_of
from univg_fast.train.state import Outcome, StageState

SAMPLED = 16  # tokens of a completion that are sampled


@dataclass(frozen=True)
class Stretched:
    """A RolloutEngine that samples SAMPLED tokens of each completion and repeats them up to the length asked for."""

    engine: RolloutEngine

    def sync_weights(self, buckets: Iterable[Mapping[str, Tensor]]) -> None:
        self.engine.sync_weights(buckets)

    def generate(
        self,
        samples: Sequence[Sample],
        num_generations: int,
        sampling: Sampling,
        features: Sequence[ImageFeatures] | None = None,
        repeats: Sequence[int] | None = None,
    ) -> list[list[Completion]]:
        short = replace(sampling, max_new_tokens=min(SAMPLED, sampling.max_new_tokens))
        found = self.engine.generate(samples, num_generations, short, features, repeats)
        return [
            [
                stretched(c, sampling.max_new_tokens, c.text if j else target_text(sample.record, "…"))
                for j, c in enumerate(of)
            ]
            for sample, of in zip(samples, found, strict=True)
        ]


def stretched(completion: Completion, length: int, text: str) -> Completion:
    ids, logprobs = (np.resize(x, length) for x in (completion.token_ids, completion.logprobs))
    return Completion(ids, logprobs, "stop", text)


def dry_run(config: Config, device: torch.device) -> None:
    """Say what the run would find. Collective; raises what the run would raise."""
    config = replace(config, run=replace(config.run, dry_run=False))
    distributed.all_or_none("run.dir", lambda: look_at_folder(config) if distributed.is_main() else None)
    with tempfile.TemporaryDirectory(prefix="univg_fast_") if distributed.is_main() else nullcontext("") as mine:
        inputs = overfit(config, prepare(config, Path(distributed.broadcast_object(mine))))
        lines = [told(stage, config, inputs, *first_step(stage, config, inputs, device)) for stage in config.stages]
        distributed.barrier()  # no rank reads in the folder any more
    if distributed.is_main():
        print(*lines, not_tried(config, len(inputs.records["eval"])), sep="\n")
        print("dry run: fine; nothing was saved", flush=True)


def look_at_folder(config: Config) -> None:
    """What a run would refuse before it begins: packages that are not there, and another run in its folder."""
    sinks.check(config.log)
    if config.run.resume != "never" and Path(config.run.dir).is_dir():
        settle(config, Path(config.run.dir))


def first_step(
    stage: str, config: Config, inputs: Inputs, device: torch.device
) -> tuple[Outcome, dict[str, float], float | None]:
    """What the stage's first step did, its seconds by phase, and the peak of memory in GiB on a GPU. Collective."""
    phases = Phases()
    phases.stage, phases.step = stage, 1
    free_memory(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with phases("load"), out_of_memory_told(phases, config):
        engine, plain = make_policy(stage, config, inputs, config.model.path, device)
    phases.follow(engine.module)
    with out_of_memory_told(phases, config), make_loader(stage, config, inputs, engine.module) as loader:
        step = make_step(stage, config, inputs, config.model.path, device, engine, plain, loader, phases)
        if isinstance(step, GrpoStep):
            step.draws.rollout = Stretched(step.draws.rollout)
        phases.take()
        began = time.perf_counter()
        outcome = step(StageState())
        seconds = phases.take() | {"step": time.perf_counter() - began}
    assert outcome is not None, "a request to stop ends the process, as nothing would be lost"
    release(engine)
    peak = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None
    if peak is not None:
        peak = distributed.reduce_floats({}, {"peak": peak})["peak"]
    if outcome.metrics["skipped"]:
        found = f"loss {outcome.metrics['loss']}, grad_norm {outcome.metrics['grad_norm']}"
        raise ValueError(
            f"stage {stage}: expected a finite loss and gradient in the first step, got {found}; "
            f"samples on rank {distributed.rank()}: {outcome.suspects[:5]}"
        )
    return outcome, seconds, peak


def not_tried(config: Config, held_out: int) -> str:
    """What the run's hours hold besides steps."""
    asked = min(held_out, config.evaluate.max_samples or held_out)
    times = f"{1 + len(config.stages)} evaluations of {asked} held-out records" if asked else "evaluations (no records)"
    return (
        f"not tried: {times}, with answers of up to {config.evaluate.max_completion_length} tokens; sampling to the "
        "end; saves and exports. Hours by formula: python -m univg_fast.check; a run tells its own after some steps"
    )


def right_answers(rewards: Mapping[str, float]) -> str:
    """What these prompts' right answers earn, by uid: all should earn the same."""
    if not rewards:
        return "none of rank 0's prompts can be used"
    least, most = min(rewards, key=rewards.__getitem__), max(rewards.values())
    if rewards[least] == most:
        return f"the right answers' reward {most:g}"
    mean = sum(rewards.values()) / len(rewards)
    return f"the right answers' rewards {rewards[least]:g} ({least}) to {most:g}, {mean:g} in the mean"


def told(
    stage: str, config: Config, inputs: Inputs, outcome: Outcome, seconds: Mapping[str, float], peak: float | None
) -> str:
    """What was found, on one line."""
    m, steps = outcome.metrics, total_steps(stage, config, mix_of(inputs.records[stage]).epoch)
    words = [
        f"{m['num_samples']:.0f} samples in {m['pack/rows']:.0f} rows of {m['packed_tokens']:.0f} tokens",
        f"loss {m['loss']:.4g}, grad_norm {m['grad_norm']:.4g}",
    ]
    if stage == "grpo":
        words.append(f"completions of {config.grpo.max_completion_length} tokens, {SAMPLED} of them sampled")
        words.append(right_answers({row["uid"]: row["completions"][0]["reward"] for row in outcome.rollouts()}))
    parts = " ".join(f"{name} {value:.1f}" for name, value in seconds.items() if value >= 0.05 and name != "step")
    words.append(f"{parts} = {seconds['step']:.1f} s")
    if stage == "sft":
        words.append(f"{steps} steps: {clock(steps * seconds['step'])} if all were as slow as the first")
    else:
        words.append(f"{steps} steps, whose time hangs on completions that were not sampled")
    if peak is not None:
        shape = shape_of(config.model, inputs.processor.tokenizer.get_vocab())
        formula = memory(stage, config, shape, Load.full(config), distributed.world_size())[-1].value
        words.append(f"peak {peak:.1f} GiB on the fullest GPU, {formula:.1f} by formula where rows are full")
    return f"dry run, stage {stage}: {'; '.join(words)}"
