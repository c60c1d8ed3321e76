"""One stage from its first step (or its last checkpoint) to an exported model."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from univg_fast import distributed
from univg_fast.config import Config, config_hash
from univg_fast.data.mix import mix_of
from univg_fast.files import could_not_write
from univg_fast.model import PackedModel
from univg_fast.train import stopping
from univg_fast.train.bad import BadRecords
from univg_fast.train.crash import count_skipped, end_if_stuck
from univg_fast.train.engine import release
from univg_fast.train.export import export
from univg_fast.train.faults import Faults
from univg_fast.train.grpo import GrpoStep
from univg_fast.train.making import make_loader, make_policy, make_step, total_steps
from univg_fast.train.metrics import MetricsLogger
from univg_fast.train.phases import Phases
from univg_fast.train.profiler import profiler_window
from univg_fast.train.random_state import random_state, set_random_state
from univg_fast.train.resume import is_done, resume
from univg_fast.train.saves import Saves
from univg_fast.train.setup import Inputs
from univg_fast.train.sft import SftStep
from univg_fast.train.sheets import sheets
from univg_fast.train.state import Outcome, StageState
from univg_fast.train.throughput import Throughput


def run_stage(
    stage: str,
    config: Config,
    inputs: Inputs,
    start: str,
    run_dir: Path,
    device: torch.device,
    phases: Phases | None = None,
    faults: Faults | None = None,
) -> Path | None:
    """Train `stage` from the model at `start`; returns the exported folder run_dir/hf/STAGE. Collective.

    If that folder is there already, the stage is done. Otherwise the newest complete checkpoint of the stage goes on,
    as run.resume says. None if run.max_steps ended the stage early: a checkpoint is left, and no export.
    """
    exported = run_dir / "hf" / stage
    if is_done(exported, run_dir / "ckpt", stage, config.run.resume):
        return exported
    phases = phases or Phases()
    faults = faults or Faults(config.fault, phases, run_dir / "crash")
    phases.stage, phases.step = stage, 0
    total = total_steps(stage, config, mix_of(inputs.records[stage]).epoch)
    last = min(total, config.run.max_steps or total)
    with phases("load"):
        engine, plain = make_policy(stage, config, inputs, start, device)
        model: PackedModel = engine.module
        state = resume(run_dir / "ckpt", stage, config.run.resume, engine, config_hash(config), phases.beat)
    state.skipped_in_a_row = 0  # one more would end the run again
    phases.follow(model)
    faults.into_model(model)
    throughput = Throughput.of(model, stage, config)
    bad = BadRecords(config.data.max_bad_fraction, state, run_dir, stage)
    saves = Saves(stage, config, run_dir, state, engine, phases, faults, last, total)
    with (
        MetricsLogger(run_dir, stage, total, state.step, config.log, throughput, asdict(config)) as logger,
        sheets(run_dir, stage, config.log.sheet_steps) as write_sheet,
        profiler_window(run_dir, stage, config.log.profile, phases),
        make_loader(stage, config, inputs, model) as loader,
    ):
        faults.into_loader(loader)
        step = make_step(stage, config, inputs, start, device, engine, plain, loader, phases)
        phases.take()  # what came before belongs to no step
        logger.start()
        with stopping.finishing():
            while state.step < last:
                outcome, drawn = next_step(step, state, phases, saves)
                bad.tell(outcome.bad)
                step.over_budget.note(run_dir / "over_budget.jsonl", stage=stage, step=state.step)
                bad.count(outcome.metrics["bad_records"], loader.batch_size * drawn)
                if stage == "grpo" and is_rollout_step(state.step, last, config.log.rollout_steps):
                    write_rollouts(run_dir, stage, state.step, outcome.rollouts())
                write_sheet(state.step, outcome.rollouts)
                logger.log(state.step, outcome.metrics, phases.take())
                end_if_stuck(state, outcome, config, stage, start, run_dir)
                saves.after_step()
            if last == total:
                finish(model, config, inputs, exported, start, saves, phases)
    release(engine)
    return exported if last == total else None


def next_step(step: SftStep | GrpoStep, state: StageState, phases: Phases, saves: Saves) -> tuple[Outcome, int]:
    """(what the step did, the stage's own counts among its metrics; batches it drew); `state` is after it.

    Stopped on all ranks, what is done saved, if one of them was told to stop. Collective.
    """
    phases.step = state.step + 1
    stop, streams, outcome = stopping.agreed(), random_state(), None
    with suppress(stopping.GivenUp):
        outcome = None if stop else step(state)
    if outcome is None:
        set_random_state(streams)  # the step that is done again draws the same numbers
        saves.what_is_not_safe()
        raise stopping.Stopped(stop or stopping.agreed())
    drawn = outcome.cursor - state.cursor
    state.step, state.cursor = phases.step, outcome.cursor
    outcome.metrics.update(count_skipped(state, outcome.metrics), saves_failed=float(state.saves_failed))
    return outcome, drawn


def finish(
    model: PackedModel, config: Config, inputs: Inputs, exported: Path, start: str, saves: Saves, phases: Phases
) -> None:
    """Save the stage's last step, then export it. Collective."""
    if config.save.steps > 0:
        saves.what_is_not_safe(must=False)
    apart = config.model.lora is not None and not config.model.lora.merge_on_export
    try:
        with phases("save"):
            export(model, inputs.processor, exported, start if apart else None, phases.beat)
    except distributed.RankError:
        saves.what_is_not_safe()
        raise


def is_rollout_step(step: int, last: int, every: int) -> bool:
    return every > 0 and (step % every == 0 or step == last)


def write_rollouts(run_dir: Path, stage: str, step: int, rows: list[dict[str, Any]]) -> None:
    """rollouts/STAGE_STEP.jsonl from all ranks' prompts. Collective."""
    parts = distributed.gather_on_main(rows)
    if not parts:
        return
    path = run_dir / "rollouts" / f"{stage}_{step:06d}.jsonl"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for part in parts for row in part))
    except OSError as error:
        could_not_write(str(path), error)
