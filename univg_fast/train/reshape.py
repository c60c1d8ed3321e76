"""DeepSpeed's part of a checkpoint into an engine: written by as many ranks or by others, and under this configuration.

Other ranks: DeepSpeed's universal checkpoint, made by rank 0 in a temporary folder beside the checkpoint, which holds
the whole of weights and optimizer a second time for as long as it is being read.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import torch

from univg_fast import distributed
from univg_fast.train import manifest

# one worker: more would be forked, and gloo's threads with them
_CONVERSION = {"num_extract_workers": 1, "num_merge_workers": 1, "inject_missing_state": True} | {
    "keep_temp_folder": False,
    "strict": True,
}


def load_files(engine: Any, folder: Path, tag: str = manifest.ENGINE) -> None:
    """What this number of ranks wrote. Collective. ValueError where trained weights are missing in it."""
    loaded, _ = engine.load_checkpoint(str(folder), tag=tag, custom_load_fn=_load_trained)
    if loaded is None:
        raise ValueError(f"{folder}: DeepSpeed found nothing to load under {folder / tag}")


def load_for_other_ranks(engine: Any, folder: Path, beat: Callable[[], None] = lambda: None) -> None:
    """What another number of ranks wrote. Collective. `beat` is called while the checkpoint is being divided."""
    if engine.zero_optimization_stage() == 0:
        load_files(engine, folder)  # nothing is divided
        return
    whole = folder.parent / distributed.broadcast_object(f".tmp-universal-{folder.name}-{uuid4().hex[:8]}")
    distributed.all_or_none(f"dividing {folder} anew", lambda: _convert(folder / manifest.ENGINE, whole, beat))
    engine._config.load_universal_checkpoint = True
    load_files(engine, whole)
    engine._config.load_universal_checkpoint = False
    distributed.barrier()
    if distributed.is_main():
        shutil.rmtree(whole, ignore_errors=True)
    for parameter, state in engine.lr_scheduler.optimizer.state.items():
        # ZeRO 3 gives every group the same counter, which each of them would then advance; fused AdamW wants it near
        if isinstance(state["step"], torch.Tensor):
            state["step"] = state["step"].to(parameter.device, copy=True)


def frozen_sum(module: torch.nn.Module) -> int:
    """A sum of all bits that do not train, whoever holds them. Collective.

    They are not in a checkpoint: by this number `load` knows that the model is the one that the stage began with.
    """
    total = 0
    for parameter in (p for p in module.parameters() if not p.requires_grad):
        piece: torch.Tensor | None = getattr(parameter, "ds_tensor", None)  # ZeRO 3
        if piece is None:
            held, count = parameter.detach(), parameter.numel() if distributed.is_main() else 0
        else:  # without what fills up the last rank's
            whole: int = parameter.ds_numel  # type: ignore[attr-defined]
            held, count = piece.detach(), min(piece.numel(), whole - piece.numel() * distributed.rank())
        bits = held.reshape(-1)[: max(0, count)].contiguous().view(torch.int16)
        total += int(bits.sum(dtype=torch.int64))
    return sum(distributed.gather_objects(total))


@contextmanager
def keep_config(engine: Any) -> Iterator[list[str]]:
    """What is loaded inside brings no hyper-parameters along; afterwards the list says which were others.

    DeepSpeed's files hold learning rate, betas, epsilon, decay and clipping, too, and loading would bring them back.
    """
    schedule, changes = engine.lr_scheduler, list[str]()
    optimizer, base = schedule.optimizer, list(schedule.base_lrs)
    wanted = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    clip = getattr(engine.optimizer, "clip_grad", None)
    yield changes
    for key, name in (("initial_lr", "learning_rate"), ("weight_decay",) * 2, ("betas",) * 2, ("eps", "adam_epsilon")):
        was, now = optimizer.param_groups[0][key], wanted[0][key]  # of a universal one, ZeRO 3 makes all like it
        if was != now:
            changes.append(f"{name} {was}, not {now}")
    schedule.base_lrs = base
    rates = [rate * factor(schedule.last_epoch) for rate, factor in zip(base, schedule.lr_lambdas, strict=True)]
    for group, kept, rate in zip(optimizer.param_groups, wanted, rates, strict=True):
        group.update(kept | {"lr": rate})
    schedule._last_lr = rates
    if clip is not None:
        engine.optimizer.clip_grad = clip


def _convert(source: Path, whole: Path, beat: Callable[[], None]) -> None:
    """Rank 0 makes the universal checkpoint; the others look whether it is done: a collective would time out."""
    store = distributed.store()
    if not distributed.is_main():
        while store is not None and not store.check([whole.name]):
            beat()
            time.sleep(0.1)
        return
    from deepspeed.checkpoint import ds_to_universal

    folders = {"input_folder": str(source), "output_folder": str(whole / manifest.ENGINE)}
    try:
        free, needed = shutil.disk_usage(whole.parent).free, int(2.2 * manifest.num_bytes(source))
        if free < needed:
            raise OSError(f"{whole.parent} has {free:,} bytes free, and this needs about {needed:,} for a while")
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()), ThreadPoolExecutor(1) as pool:
            made = pool.submit(ds_to_universal.main, SimpleNamespace(**folders, **_CONVERSION))
            while not made.done():
                beat()
                wait([made], timeout=1.0)
            made.result()
    except BaseException:
        shutil.rmtree(whole, ignore_errors=True)
        raise
    finally:
        if store is not None:
            store.set(whole.name, "done")


def _load_trained(src: dict[str, torch.Tensor], dst: torch.nn.Module) -> None:
    """The module's state; what does not train is not in it, and stays as the stage began with it."""
    missing, unexpected = dst.load_state_dict(src, strict=False)
    trained = {name for name, p in dst.named_parameters(remove_duplicate=False) if p.requires_grad}
    lost = sorted(trained & set(missing)) + sorted(unexpected)
    if lost:
        raise ValueError(f"checkpoint: its weights are another model's; missing or unknown: {', '.join(lost[:5])}")
