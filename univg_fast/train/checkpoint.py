"""Checkpoints that are whole or not there.

`ckpt/{stage}_{step:06d}/` holds DeepSpeed's files, a file per rank with random states and the stage's state,
and a manifest with size and SHA-256 of each. All is written into a hidden temporary folder and synced to
disk; the manifest comes last, then one rename. A kill at any moment leaves the older checkpoints, and no half
one that counts. Weights that do not train are not in it: they are those of the stage's first model.
All ranks must see the same folder.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch

from univg_fast import distributed
from univg_fast.config import SaveConfig
from univg_fast.train import manifest
from univg_fast.train.random_state import random_state
from univg_fast.train.reshape import frozen_sum
from univg_fast.train.state import StageState


def save(
    root: Path,
    stage: str,
    state: StageState,
    engine: Any,
    config_hash: str,
    config: SaveConfig,
    *,
    frozen: int | None = None,
    must: bool = False,
    on_write: Callable[[], None] = lambda: None,
    beat: Callable[[], None] = lambda: None,
) -> Path | None:
    """Write `root/{stage}_{step:06d}` and remove the stage's oldest ones beyond save.total_limit. Collective.

    If a rank fails, nothing new appears, the temporary folder is removed, and every rank raises RankError with culprit
    and cause; unless save.on_error=warn and not `must`: then it is said and counted, and the result is None.
    `frozen`: of `frozen_sum`, where it is known. `on_write` is called before each large file; what it raises counts as
    the disk's error (an injected fault).
    `beat` is called while files are brought to the disk.
    """
    target = root / f"{stage}_{state.step:06d}"
    if distributed.broadcast_object(target.exists()) and manifest.defect(target) is None:
        return target  # the run went on from it, and has done no step since
    described = manifest.describe(stage, state.step, _zero(engine), config_hash)
    described["frozen"] = frozen_sum(engine.module) if frozen is None else frozen
    try:
        _write(target, engine, described, state, on_write, beat)
    except distributed.RankError as error:
        if must or config.on_error == "stop":
            raise
        state.saves_failed += 1
        distributed.warn(
            f"{error}. The run goes on without this checkpoint (save.on_error=warn) and tries again at its next one"
        )
        return None
    if distributed.is_main():
        _prune(root, stage, config.total_limit)
    return target


def _write(
    target: Path,
    engine: Any,
    description: dict[str, Any],
    state: StageState,
    on_write: Callable[[], None],
    beat: Callable[[], None],
) -> None:
    root = target.parent
    temporary = root / distributed.broadcast_object(f".tmp-{target.name}-{uuid4().hex[:8]}")
    needed = _needed_bytes(root, description["stage"], engine)

    def prepare() -> None:
        if distributed.is_main():
            root.mkdir(parents=True, exist_ok=True)
            for leftover in root.glob(".tmp-*"):
                shutil.rmtree(leftover, ignore_errors=True)
            if shutil.disk_usage(root).free < needed:
                raise OSError("not enough room on the disk")
            (temporary / manifest.ENGINE).mkdir(parents=True)

    def write_mine() -> None:
        if failures:
            raise failures[0]
        on_write()
        path = temporary / manifest.rank_file(distributed.rank())
        torch.save({"random": random_state(), "state": asdict(state)}, path)
        written.append(path)

    def publish() -> None:
        if distributed.is_main():
            entries = {name: entry for part in parts for name, entry in part.items()}
            manifest.write(temporary, description | {"files": dict(sorted(entries.items()))})
            if target.exists():  # a damaged one of this very step
                shutil.rmtree(target)
            os.rename(temporary, target)
            manifest.sync([root])

    try:
        distributed.all_or_none(f"making room for checkpoint {target}", prepare)
        with _watching_writes(engine, on_write) as (written, failures):
            engine.save_checkpoint(
                str(temporary), tag=manifest.ENGINE, save_latest=False, exclude_frozen_parameters=True
            )
        distributed.all_or_none(f"writing checkpoint {target}", write_mine)
        seen = distributed.all_or_none(f"listing checkpoint {target}", lambda: manifest.names(temporary))
        listed = distributed.gather_objects((seen, [path.relative_to(temporary).as_posix() for path in written]))
        files = [name for names, _ in listed for name in names]
        mine = distributed.all_or_none(
            f"syncing checkpoint {target}",
            lambda: manifest.sync_share(temporary, files, beat, [names for _, names in listed]),
        )
        parts = distributed.gather_objects(mine)
        distributed.all_or_none(f"publishing checkpoint {target}", publish)
    except distributed.RankError as error:
        room = distributed.broadcast_object(shutil.disk_usage(root).free if root.exists() else 0)
        if distributed.is_main():
            shutil.rmtree(temporary, ignore_errors=True)
        raise distributed.RankError(
            f"{error}. {root} had {room:,} bytes free then; a checkpoint needs about {needed:,}. "
            "Older checkpoints are as they were"
        ) from error


@contextmanager
def _watching_writes(engine: Any, on_write: Callable[[], None]) -> Iterator[tuple[list[Path], list[Exception]]]:
    """Collect what DeepSpeed's writer writes here, and what it raises, for later: raised, it would leave the others at
    a barrier."""
    written: list[Path] = []
    failures: list[Exception] = []
    writer, original = engine.checkpoint_engine, engine.checkpoint_engine.save

    def guarded(state_dict: Any, path: str) -> None:
        try:
            on_write()
            original(state_dict, path)
            written.append(Path(path))
        except (OSError, RuntimeError) as error:
            failures.append(RuntimeError(f"{path}: {error} (disk full, or over quota?)"))

    writer.save = guarded
    engine._copy_recovery_script = lambda path: None  # scripts that model.export makes needless, and that may fail
    try:
        yield written, failures
    finally:
        del writer.save, engine._copy_recovery_script  # the classes' own again


def _needed_bytes(root: Path, stage: str, engine: Any) -> int:
    """What the stage's last checkpoint took and a tenth more; before the first one, what weights and optimizer take."""
    last = [p for p in manifest.of_stage(root, stage) if manifest.is_whole(p)][-1:] if distributed.is_main() else []
    size = int(1.1 * manifest.num_bytes(last[0])) if last else _first_size(engine)
    return distributed.broadcast_object(size)


def _first_size(engine: Any) -> int:
    trained = [p for p in engine.module.parameters() if p.requires_grad]
    sizes = [(getattr(p, "ds_numel", p.numel()), p.element_size()) for p in trained]
    master = 0 if _zero(engine) == 0 else 4  # float32 weights beside the computing ones; both of AdamW's moments
    return sum(n * ((0 if _zero(engine) == 3 else width) + master + 8) for n, width in sizes)


def _prune(root: Path, stage: str, total_limit: int) -> None:
    """Keep so many complete ones, and remove all that are older."""
    found = manifest.of_stage(root, stage)
    kept = [p for p in found if manifest.is_whole(p)][-total_limit:]
    try:
        for path in found[: found.index(kept[0])] if len(kept) == total_limit else []:
            os.rename(path, root / f".tmp-{path.name}")  # first out of sight: half removed it must not count
            shutil.rmtree(root / f".tmp-{path.name}")
    except OSError as error:
        distributed.warn(f"cannot remove an old checkpoint: {error}")


def _zero(engine: Any) -> int:
    return engine.zero_optimization_stage()
