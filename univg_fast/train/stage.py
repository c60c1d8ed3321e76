"""One stage from its first step (or its last checkpoint) to an exported model."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from univg_fast.config import Config, config_hash
from univg_fast.data.loader import SampleLoader
from univg_fast.model import PackedModel
from univg_fast.rollout import LocalEngine
from univg_fast.train import checkpoint, distributed
from univg_fast.train.engine import make_engine, release
from univg_fast.train.grpo import GrpoStep
from univg_fast.train.grpo_log import rollout_rows
from univg_fast.train.metrics import MetricsLogger
from univg_fast.train.setup import Inputs, first_sample, load_policy
from univg_fast.train.sft import SftStep
from univg_fast.train.zero import plain_copy


def run_stage(
    stage: str, config: Config, inputs: Inputs, start: str, run_dir: Path, device: torch.device
) -> Path:
    """Train `stage` from the model at `start`; returns the exported folder run_dir/hf/STAGE. Collective.

    If that folder is there already, the stage is done. Otherwise the newest complete checkpoint of the stage goes on,
    as run.resume says.
    """
    exported = run_dir / "hf" / stage
    if config.run.resume != "never" and (exported / "config.json").is_file():
        return exported
    records = inputs.records[stage]
    total = total_steps(stage, config, len(records))
    optim = config.sft if stage == "sft" else config.grpo
    model = PackedModel(load_policy(config, inputs.processor, start, device)).train()
    sampler = plain_copy(model, config.deepspeed.zero_stage)
    engine = make_engine(model, optim, config.deepspeed, total)
    loader = SampleLoader(
        records,
        inputs.processor,
        batch_size(stage, config),
        seed=config.run.seed,
        with_response=stage == "sft",
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        num_workers=config.data.num_workers,
    )
    first = resume(stage, config, run_dir, engine)
    with MetricsLogger(run_dir, stage, total, first, config.log) as logger:
        spare = first_sample(records, inputs.processor, with_response=stage == "sft")
        if stage == "sft":
            step: Any = SftStep(config, engine, loader, spare, logger.phase)
        else:
            reference = frozen(config, inputs, start, device) if config.grpo.beta > 0 else None
            rollout = LocalEngine(sampler, inputs.processor.tokenizer, inputs.processor.end_token_id)
            step = GrpoStep(config, engine, loader, rollout, reference, spare, logger.phase)
        last = min(total, config.run.max_steps or total)
        for number in range(first, last):
            result = step(number)
            if stage == "grpo":
                result, scored = result
                if config.log.rollout_steps and number % config.log.rollout_steps == 0:
                    write_rollouts(run_dir, stage, number + 1, rollout_rows(scored, number + 1))
            logger.log(number + 1, result)
            if config.save.steps and (number + 1) % config.save.steps == 0 and number + 1 < last:
                with logger.phase("save"):
                    checkpoint.save(
                        run_dir / "ckpt",
                        stage,
                        number + 1,
                        engine,
                        {"step": number + 1},
                        config_hash(config),
                        config.save.total_limit,
                    )
    loader.close()
    export(engine, inputs, exported)
    release(engine)
    return exported


def batch_size(stage: str, config: Config) -> int:
    """Records of one step over all ranks."""
    return config.sft.per_step_samples if stage == "sft" else config.grpo.prompts_per_step


def total_steps(stage: str, config: Config, num_records: int) -> int:
    """Optimizer schedule length of the stage, in steps of the loader."""
    optim = config.sft if stage == "sft" else config.grpo
    if optim.max_steps:
        return optim.max_steps
    return max(1, math.ceil(num_records * optim.num_train_epochs / batch_size(stage, config)))


def resume(stage: str, config: Config, run_dir: Path, engine: Any) -> int:
    """Load the checkpoint that run.resume asks for; returns the number of steps already done."""
    folder = checkpoint.find(run_dir / "ckpt", stage, config.run.resume)
    if folder is None:
        return 0
    state = checkpoint.load(folder, engine, config_hash(config))
    if distributed.is_main():
        print(f"resumed {stage} at step {state['step']} from {folder}", flush=True)
    return int(state["step"])


def save(stage: str, step: int, config: Config, run_dir: Path, engine: Any) -> None:
    """A checkpoint after `step` steps: the order of data and the samples drawn depend on (seed, step) alone."""
    state = {"step": step}
    checkpoint.save(
        run_dir / "ckpt", stage, step, engine, state, config_hash(config), config.save.total_limit
    )


def frozen(config: Config, inputs: Inputs, start: str, device: torch.device) -> PackedModel:
    """The reference policy: a copy of the stage's first weights that never changes."""
    return PackedModel(load_policy(config, inputs.processor, start, device)).eval().requires_grad_(False)


def write_rollouts(run_dir: Path, stage: str, step: int, rows: list[dict[str, Any]]) -> None:
    """rollouts/STAGE_STEP.jsonl from all ranks' prompts. Collective."""
    parts = distributed.gather_objects(rows)
    if not distributed.is_main():
        return
    path = run_dir / "rollouts" / f"{stage}_{step:06d}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for part in parts for row in part))


def export(engine: Any, inputs: Inputs, folder: Path) -> None:
    """A transformers folder with model, tokenizer and image processor; it appears only when it is whole. Collective."""
    model = engine.module.model
    state = full_state(engine)

    def write() -> None:
        if not distributed.is_main():
            return
        temporary = folder.with_name(f".tmp-{folder.name}")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        model.save_pretrained(temporary, state_dict=state)
        inputs.processor.tokenizer.save_pretrained(temporary)
        inputs.processor.image_processor.save_pretrained(temporary)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)

    distributed.all_or_none(f"exporting the model to {folder}", write)


def full_state(engine: Any) -> dict[str, torch.Tensor]:
    """The model's whole state dict on rank 0's host; empty elsewhere under ZeRO 3. Collective."""
    model, state = engine.module.model, {}
    if engine.zero_optimization_stage() < 3:
        return {k: v.detach().cpu() for k, v in model.state_dict().items()}
    from deepspeed.zero import GatheredParameters

    for name, parameter in model.named_parameters(remove_duplicate=False):
        with GatheredParameters([parameter]):
            if distributed.is_main():
                state[name] = parameter.detach().cpu().clone()
    return state
