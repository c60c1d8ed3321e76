"""Going on from a checkpoint: which one, and putting engine, random states and the stage's state where it has them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from univg_fast import distributed
from univg_fast.files import read_json, write_whole
from univg_fast.train import manifest
from univg_fast.train.random_state import reseed, set_random_state
from univg_fast.train.reshape import frozen_sum, keep_config, load_files, load_for_other_ranks
from univg_fast.train.state import StageState

WENT_BACK = "went_back.json"  # in ckpt/: the folder that run.resume named, its stage and step


def resume(
    root: Path, stage: str, choice: str, engine: Any, config_hash: str, beat: Callable[[], None] = lambda: None
) -> StageState:
    """Put the engine where the checkpoint has it that `choice` (run.resume) means; where the stage stands. Collective.

    Checkpoints that this one does not lead to (damaged ones, or those of steps that are now done again) are moved into
    root/old_N: they would be taken for newer ones. `beat` is called where it takes minutes.
    """
    folder = find(root, stage, choice)
    if folder is None:
        return StageState()
    state = load(folder, engine, config_hash, beat)
    if distributed.is_main():
        print(f"resumed {stage} at step {state.step} from {folder}", flush=True)
        _set_aside(root, stage, folder)
        if folder == Path(choice):
            told = {"folder": str(folder.resolve()), "stage": stage, "step": state.step}
            write_whole(root / WENT_BACK, json.dumps(told) + "\n")
    return state


def is_done(exported: Path, root: Path, stage: str, choice: str) -> bool:
    """Whether the stage has its model at `exported`, as rank 0 sees it. Collective.

    ValueError where `choice` names a checkpoint of that stage to go back to: what came after it is still there.
    """
    done = choice != "never" and distributed.broadcast_object((exported / "config.json").is_file())
    if done and choice != "auto" and _followed(root, choice) is None and _stage_of(choice) == stage:
        raise ValueError(
            f"run.resume: expected a checkpoint of a stage that is not done, got {choice}, but {exported} is there. To "
            f"go back to it, give it another --run.dir, or move away {exported}, eval/{stage}.json and what "
            "later stages left in hf, ckpt and eval"
        )
    return done


def _followed(root: Path, choice: str) -> tuple[str, int] | None:
    """Stage and step of the folder that `choice` names, if an earlier start of this run went on from it. Collective.

    The same command, given again, does not go back there once more.
    """
    told = read_json(root / WENT_BACK) if distributed.is_main() and choice not in ("auto", "never") else None
    told = distributed.broadcast_object(told)
    return (told["stage"], told["step"]) if told and told["folder"] == str(Path(choice).resolve()) else None


def _stage_of(choice: str) -> str:
    """Of a checkpoint that run.resume names. Collective."""
    try:
        stage = manifest.read(Path(choice))["stage"] if distributed.is_main() else ""
    except (OSError, ValueError, KeyError):  # `find` says what is wrong with it
        stage = ""
    return distributed.broadcast_object(stage)


def _set_aside(root: Path, stage: str, chosen: Path) -> None:
    step = manifest.read(chosen)["step"]
    later = [p for p in manifest.of_stage(root, stage) if manifest.step_of(p) >= step and not p.samefile(chosen)]
    if later:
        old = next(root / f"old_{n}" for n in range(1, 10_000) if not (root / f"old_{n}").exists())
        old.mkdir()
        for path in later:
            path.rename(old / path.name)
        distributed.warn(f"{', '.join(p.name for p in later)} moved to {old}: this run goes on from before them")


def find(root: Path, stage: str, choice: str) -> Path | None:
    """What `run.resume` means: "never", "auto" (the newest complete checkpoint), or a checkpoint's folder. Collective.

    None: begin at step 0. To another stage than its own a named folder means "auto"; to its own, it means those that
    came after it once an earlier start has gone on from it. ValueError if it is damaged or missing, or if the stage has
    checkpoints and all of them are damaged: nothing begins anew by itself.
    """
    if choice == "never":
        return None
    followed = _followed(root, choice)
    if choice != "auto" and followed is None:
        if problem := manifest.defect(Path(choice)):
            raise ValueError(f"run.resume: expected auto, never or a complete checkpoint, got {choice}: {problem}")
        if manifest.read(Path(choice))["stage"] == stage:
            return Path(choice)
    paths = manifest.of_stage(root, stage)[::-1]
    if followed is not None and followed[0] == stage:
        paths = [path for path in paths if manifest.step_of(path) > followed[1]]
        if paths:
            distributed.warn(
                f"run.resume={choice}: an earlier start went on from there, and this one from what came after it; "
                f"delete {root / WENT_BACK} to go back once more"
            )
        paths.append(Path(choice))
    passed_over = []
    for path in distributed.broadcast_object(paths):
        problem = manifest.defect(path)
        if problem is None:
            return path
        passed_over.append(f"{path} ({problem})")
        distributed.warn(f"checkpoint {path} is not complete, passing it over: {problem}")
    if passed_over:
        raise ValueError(
            f"run.resume={choice}: expected a complete checkpoint of stage {stage}, got only damaged ones: "
            f"{'; '.join(passed_over)}. Bring one back, give --run.resume=FOLDER of another, or begin this run anew "
            "with --run.resume=never, which keeps the old files in old_N"
        )
    return None


def load(folder: Path, engine: Any, config_hash: str, beat: Callable[[], None]) -> StageState:
    """Put engine and random states where the checkpoint has them; returns the stage's state. Collective.

    Another number of ranks may have written it (`reshape`): then ranks that are new begin random streams of their own.
    ValueError if another ZeRO stage wrote it. Other versions or another configuration get a warning: the run goes on,
    but not bit by bit as it would have.
    """
    then, now = manifest.read(folder), manifest.describe("", 0, engine.zero_optimization_stage(), config_hash)
    if then["zero_stage"] != now["zero_stage"]:
        raise ValueError(
            f"{folder} was written with deepspeed.zero_stage {then['zero_stage']}, this run has {now['zero_stage']}: "
            "change it back, begin another run with the model that --model.export writes, or this one anew with "
            "--run.resume=never"
        )
    if then["frozen"] != frozen_sum(engine.module):
        raise ValueError(
            f"{folder}: the weights that do not train are not those that it was written beside; expected the model "
            "and the freezing that the stage began with (model.path, model.lora, the run's hf/sft)"
        )
    for key in ("config_hash", "versions"):
        if then[key] != now[key]:
            distributed.warn(f"{folder} has other {key}: {then[key]}, now {now[key]}")
    with keep_config(engine) as changes:
        if then["world_size"] == now["world_size"]:
            load_files(engine, folder)
        else:
            distributed.warn(
                f"{folder} was written by {then['world_size']} ranks and is divided anew for {now['world_size']}"
            )
            load_for_other_ranks(engine, folder, beat)
    for change in changes:
        distributed.warn(f"{folder} has {change}; the configuration's holds from here on")
    rank = distributed.rank()
    mine = torch.load(folder / manifest.rank_file(rank if rank < then["world_size"] else 0), weights_only=False)
    set_random_state(mine["random"])
    if rank >= then["world_size"]:
        reseed(int(torch.randint(2**62, ())), rank)  # from where rank 0's streams stand, which began at run.seed
    return StageState(**mine["state"])
