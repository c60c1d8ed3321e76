"""Run by test_disk_full.py under torchrun: `disk_worker.py FOLDER` on a small file system; rank 0 prints JSON."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))
from engine_problem import OPTIM, TinyLM, batch

from univg_fast import distributed
from univg_fast.config import DeepSpeedConfig, SaveConfig
from univg_fast.train import checkpoint, engine, manifest
from univg_fast.train.state import StageState

ROOT = Path(sys.argv[1]) / "ckpt"
BALLAST = Path(sys.argv[1]) / "ballast"


def fill(leave: int) -> None:
    """What another program's files do: only `leave` bytes stay free."""
    with BALLAST.open("wb") as file:
        file.write(b"x" * (shutil.disk_usage(BALLAST.parent).free - leave))


class Course:
    """Steps and saves of a small engine."""

    def __init__(self) -> None:
        self.ds = engine.make_engine(TinyLM(), OPTIM, DeepSpeedConfig(zero_stage=1), 10)
        self.state = StageState()

    def step_and_save(self, on_write: Callable[[], None] = lambda: None, **how: Any) -> dict[str, Any]:
        row = batch(self.state.step)[distributed.rank()]
        engine.train_step(self.ds, [self.ds(*row)])
        self.state.step += 1
        must = how.pop("must", False)
        problem = ""
        try:
            config = SaveConfig(total_limit=1, **how)
            checkpoint.save(ROOT, "sft", self.state, self.ds, "hash", config, must=must, on_write=on_write)
        except distributed.RankError as error:
            problem = str(error)
        there = sorted(p.name for p in ROOT.iterdir()) if distributed.is_main() else []
        names = distributed.broadcast_object(there)
        defects = [manifest.defect(ROOT / name) for name in names if not name.startswith(".")]
        return {"raised": problem, "there": names, "defects": defects, "failed": self.state.saves_failed}


def main() -> None:
    distributed.init(timeout_s=300)
    course = Course()
    report = {"first": course.step_and_save()}
    if distributed.is_main():
        fill(leave=20_000)
    distributed.barrier()
    report["full_before"] = course.step_and_save()
    report["full_before_must"] = course.step_and_save(must=True)
    report["full_before_stop"] = course.step_and_save(on_error="stop")
    if distributed.is_main():
        BALLAST.unlink()
    distributed.barrier()

    def meanwhile() -> None:  # the room was there when the save began
        if distributed.is_main() and not BALLAST.exists():
            fill(leave=6_000)

    report["full_meanwhile"] = course.step_and_save(meanwhile)
    if distributed.is_main():
        BALLAST.unlink()
    distributed.barrier()
    report["room_again"] = course.step_and_save()
    both = distributed.gather_objects(report)
    if distributed.is_main():
        print("RESULT " + json.dumps(both), flush=True)


if __name__ == "__main__":
    distributed.run(main)
