"""One stage from its first step (or its last checkpoint) to an exported model."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch

from univg_fast import distributed
from univg_fast.config import Config, config_hash
from univg_fast.data.loader import SampleLoader
from univg_fast.data.mix import mix_of
from univg_fast.data.windows import Planning
from univg_fast.model import PackedModel
from univg_fast.rollout import LocalEngine, stop_ids
from univg_fast.train import checkpoint, stopping
from univg_fast.train.bad import BadRecords
from univg_fast.train.engine import make_engine, release
from univg_fast.train.export import export
from univg_fast.train.grpo import GrpoStep
from univg_fast.train.metrics import MetricsLogger
from univg_fast.train.phases import Phases
from univg_fast.train.reference import make_reference
from univg_fast.train.resume import resume
from univg_fast.train.rows import Builder
from univg_fast.train.setup import Inputs, first_sample, load_policy
from univg_fast.train.sft import SftStep
from univg_fast.train.state import StageState
from univg_fast.train.zero import declare_head, plain_copy


def run_stage(
    stage: str, config: Config, inputs: Inputs, start: str, run_dir: Path, device: torch.device
) -> Path | None:
    """Train `stage` from the model at `start`; returns the exported folder run_dir/hf/STAGE. Collective.

    If that folder is there already, the stage is done. Otherwise the newest complete checkpoint of the stage goes on,
    as run.resume says. None if run.max_steps ended the stage early: a checkpoint is left, and no export.
    """
    exported = run_dir / "hf" / stage
    if config.run.resume != "never" and (exported / "config.json").is_file():
        return exported
    total = total_steps(stage, config, mix_of(inputs.records[stage]).epoch)
    last = min(total, config.run.max_steps or total)
    model = load_policy(config, inputs.processor, start, device).train()
    if distributed.is_main():
        print(*model.lines, sep="\n", flush=True)
    plain = plain_copy(model, config.deepspeed.zero_stage) if stage == "grpo" else model
    updates = 1 if stage == "sft" else config.grpo.num_iterations  # optimizer steps of one step of the loader
    engine = make_engine(model, config.sft if stage == "sft" else config.grpo, config.deepspeed, total * updates)
    declare_head(model, config.deepspeed.zero_stage)
    state = resume(run_dir / "ckpt", stage, config.run.resume, engine, config_hash(config))
    bad, phases = BadRecords(config.data.max_bad_fraction, state, run_dir, stage), Phases()
    with (
        MetricsLogger(run_dir, stage, total, state.step, config.log) as logger,
        make_loader(stage, config, inputs, model) as loader,
    ):
        step = make_step(stage, config, inputs, start, device, engine, plain, loader, phases)
        while state.step < last:
            phases.step = state.step + 1
            stop = stopping.agreed()
            outcome = None if stop else step(state)
            if outcome is None:
                with phases("save"):
                    save(stage, state, config, run_dir, engine)
                raise stopping.Stopped(stop or stopping.agreed())
            state.step, state.cursor, metrics = phases.step, outcome.cursor, outcome.metrics
            bad.tell(outcome.bad)
            bad.count(metrics["bad_records"], loader.batch_size)
            every = config.log.rollout_steps
            if stage == "grpo" and every and (state.step % every == 0 or state.step == last):
                write_rollouts(run_dir, stage, state.step, outcome.rollouts)
            logger.log(state.step, metrics, phases.take())
            if is_save_step(state.step, last, total, config.save.steps):
                with phases("save"):
                    save(stage, state, config, run_dir, engine, must=state.step == last)
    if last == total:
        export(engine, inputs.processor, exported)
    release(engine)
    return exported if last == total else None


def is_save_step(step: int, last: int, total: int, every: int) -> bool:
    """Whether a checkpoint follows: every so many steps, and where run.max_steps ends the stage early."""
    return step == last < total or (step < last and every > 0 and step % every == 0)


def make_loader(stage: str, config: Config, inputs: Inputs, model: PackedModel) -> SampleLoader[Any]:
    """This rank's part of each step, with all that can be made before the step: rows, or a frozen tower's images."""
    build = Builder.of(model)
    records = inputs.records[stage]
    return SampleLoader(
        records,
        inputs.processor,
        batch_size(stage, config),
        seed=config.run.seed,
        with_response=stage == "sft",
        planning=planning(stage, config),
        build=build.sft_row if stage == "sft" else None if model.vision_trains else build.images,
        num_steps=total_steps(stage, config, mix_of(records).epoch),
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        num_workers=config.data.num_workers,
    )


def planning(stage: str, config: Config) -> Planning:
    """How the stage's steps become rows: in stage 2 only after the rollout, when lengths are known."""
    return Planning(config.pack.budget_tokens, config.pack.window) if stage == "sft" else Planning()


def make_step(
    stage: str,
    config: Config,
    inputs: Inputs,
    start: str,
    device: torch.device,
    engine: Any,
    plain: PackedModel,
    loader: SampleLoader,
    phases: Phases,
) -> SftStep | GrpoStep:
    """What does one step of the stage: where it stands -> an Outcome, or None for a step that was abandoned."""
    processor = inputs.processor
    spare = first_sample(inputs.records[stage], processor, with_response=stage == "sft")
    if stage == "sft":
        return SftStep(config, engine, loader, spare, phases)
    reference = make_reference(config, processor, start, device, engine, plain)
    if reference is not None and distributed.is_main():
        print(reference.line, flush=True)
    rollout = LocalEngine(
        plain,
        processor.tokenizer,
        stop_ids(plain.model, processor.end_token_id),
        cache_gib=config.rollout.cache_gib,
        static=None if config.rollout.cuda_graphs else False,
        own_weights=plain is not engine.module,
        should_stop=stopping.requested,
    )
    step = GrpoStep(config, engine, loader, rollout, plain, reference, spare, phases)
    found = step.check(spare)
    if distributed.is_main():
        print(found, flush=True)
    return step


def batch_size(stage: str, config: Config) -> int:
    """Records of one step over all ranks."""
    return config.sft.per_step_samples if stage == "sft" else config.grpo.prompts_per_step


def total_steps(stage: str, config: Config, num_records: int) -> int:
    """Optimizer schedule length of the stage, in steps of the loader."""
    optim = config.sft if stage == "sft" else config.grpo
    if optim.max_steps:
        return optim.max_steps
    return max(1, math.ceil(num_records * optim.num_train_epochs / batch_size(stage, config)))


def save(stage: str, state: StageState, config: Config, run_dir: Path, engine: Any, must: bool = True) -> None:
    """A checkpoint. Not `must`: one of many, which may fail where save.on_error=warn."""
    checkpoint.save(run_dir / "ckpt", stage, state, engine, config_hash(config), config.save, must=must)


def write_rollouts(run_dir: Path, stage: str, step: int, rows: list[dict[str, Any]]) -> None:
    """rollouts/STAGE_STEP.jsonl from all ranks' prompts. Collective."""
    parts = distributed.gather_objects(rows)
    if not distributed.is_main():
        return
    path = run_dir / "rollouts" / f"{stage}_{step:06d}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for part in parts for row in part))
