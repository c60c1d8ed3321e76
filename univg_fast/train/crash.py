"""What is left behind where a stage cannot go on: steps with NaN in a row, a row that does not fit the memory."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from univg_fast import distributed
from univg_fast.config import Config
from univg_fast.files import could_not_write
from univg_fast.train.memory import KNOBS
from univg_fast.train.phases import Phases
from univg_fast.train.random_state import random_state
from univg_fast.train.state import Outcome, StageState


def count_skipped(state: StageState, metrics: Mapping[str, float]) -> dict[str, float]:
    """Count the updates that were skipped for NaN or infinity; the totals, for the metrics.

    In a row count steps in which no weight moved at all.
    """
    state.skipped += int(metrics["skipped"])
    stuck = 0 < metrics["skipped"] == metrics.get("updates", 1.0)
    state.skipped_in_a_row = state.skipped_in_a_row + 1 if stuck else 0
    return {"skipped_total": float(state.skipped), "skipped_in_a_row": float(state.skipped_in_a_row)}


def end_if_stuck(state: StageState, outcome: Outcome, config: Config, stage: str, start: str, run_dir: Path) -> None:
    """RankError on all ranks after run.max_skipped_steps in a row, with the suspects of all of them. Collective."""
    if state.skipped_in_a_row >= config.run.max_skipped_steps:
        try:
            write_crash(state, outcome, config, stage, start, run_dir)
        except (OSError, RuntimeError) as error:  # RuntimeError: torch.save's. The others wait for this rank
            could_not_write(f"{run_dir}/crash", error)
        found = distributed.gather_objects(outcome.suspects)
        told = [f"rank {rank}: {', '.join(uids[:5])}" for rank, uids in enumerate(found) if uids]
        raise distributed.RankError(
            f"{stage}: {state.skipped_in_a_row} steps in a row were skipped, the last one step {state.step}, as a loss "
            f"or a gradient was not finite (run.max_skipped_steps={config.run.max_skipped_steps}). Samples of rows "
            f"whose loss was not finite: {'; '.join(told) or 'none: gradients of finite losses were not finite'}. No "
            "weight moved in these steps, and none of them was saved: the newest checkpoint is of a step before them. "
            f"{run_dir}/crash/{stage}_{state.step:06d}_rank*.json say more"
        )


def write_crash(state: StageState, outcome: Outcome, config: Config, stage: str, start: str, run_dir: Path) -> None:
    """crash/STAGE_STEP_rankN.json, and this rank's random states beside it. `start`: the stage's first model."""
    folder, rank = run_dir / "crash", distributed.rank()
    path = folder / f"{stage}_{state.step:06d}_rank{rank}.json"
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(random_state(), path.with_suffix(".pt"))
    checkpoints = sorted(str(p) for p in (run_dir / "ckpt").glob(f"{stage}_*"))
    newest = checkpoints[-1] if checkpoints else None
    facts: dict[str, Any] = {
        "stage": stage,
        "step": state.step,
        "rank": rank,
        "world_size": distributed.world_size(),
        "uids": outcome.uids,
        "suspects": outcome.suspects,
        "skipped_in_a_row": state.skipped_in_a_row,
        "learning_rate": outcome.metrics.get("learning_rate"),
        "metrics": outcome.metrics,
        "config": str(run_dir / "config.yaml"),
        "random_state": str(path.with_suffix(".pt")),
        "checkpoint": newest,
        "cursor": state.cursor,
        "replay": f"--config {run_dir / 'config.yaml'} --run.dir={run_dir}_replay --stages=[{stage}] "
        f"--model.path={start} --run.max_steps={state.step} --run.resume={newest or 'auto'}",
    }
    path.write_text(json.dumps(facts, indent=1) + "\n")


@contextmanager
def out_of_memory_told(phases: Phases, config: Config) -> Iterator[None]:
    """Within it a GPU that is full is a ValueError that says what to set."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise out_of_memory(error, phases, config) from error


def out_of_memory(error: torch.OutOfMemoryError, phases: Phases, config: Config) -> ValueError:
    """What to set, said with the row that did not fit."""
    where = f"rank {distributed.rank()}: out of GPU memory in phase {phases.name} of {phases.stage} step {phases.step}"
    tokens, patches = phases.row or (0, 0)
    if phases.name in ("gen", "eval"):
        knob = f"rollout.cache_gib={config.rollout.cache_gib:g} bounds what is decoded at once: set it lower"
        if phases.name == "eval":
            knob += f", or evaluate.prompts_per_batch={config.evaluate.prompts_per_batch}: their images at once"
        if phases.name == "gen" and config.model.freeze_vision_tower:
            budget = config.pack.budget_tokens
            knob += f"; pack.budget_tokens={budget} what the vision tower sees at once before that, in image tokens"
    elif phases.name in ("ref", "update"):
        budget = config.pack.budget_tokens
        knob = f"pack.budget_tokens={budget} bounds a row: set it to {max(tokens // 2, 1)} or lower"
        if tokens > budget:
            knob = (
                f"one sample alone is longer than pack.budget_tokens={budget}: set data.max_length or data.max_pixels"
            )
        if not config.model.gradient_checkpointing:
            knob += ", or model.gradient_checkpointing=true"
    elif phases.name == "sync":
        knob = "deepspeed.zero_stage=3 keeps the whole policy a second time, for the rollout: 2 needs no copy"
    elif phases.name == "data":
        what = "images of the step's prompts" if phases.stage == "grpo" else "images of the fullest row"
        knob = f"{what} are most of what this phase holds: {KNOBS[what]}"
    elif phases.name == "load":
        knob = "the model comes onto each GPU whole, before ZeRO divides it: model.torch_dtype=bfloat16"
        if phases.stage == "grpo":
            knob += "; grpo.reference=host or grpo.beta=0 for what lies beside it"
        knob += "; after that deepspeed.zero_stage, model.lora or an offloaded optimizer bound what training adds"
    elif config.deepspeed.zero_stage < 3:
        knob = f"deepspeed.zero_stage higher than {config.deepspeed.zero_stage} shares out the optimizer"
    else:
        knob = "more ranks hold less of the optimizer each; offload_optimizer in deepspeed.config holds it on the host"
    row = f"; the last row has {tokens} tokens and {patches} patches" if phases.row and phases.name != "load" else ""
    return ValueError(f"{where}{row}. {knob}. ({str(error).strip().splitlines()[0]})")
