"""Run by test_written.py: `written_worker.py FOLDER`; rank 0 prints what each rank opened to hash it and sync it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from engine_problem import OPTIM, TinyLM, batch

from univg_fast import distributed
from univg_fast.config import DeepSpeedConfig, SaveConfig
from univg_fast.train import checkpoint, engine, manifest
from univg_fast.train.state import StageState


def main() -> None:
    distributed.init(timeout_s=300)
    root, opened = Path(sys.argv[1]), set()

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and str(arguments[0]).endswith(".pt") and arguments[2] & os.O_ACCMODE == os.O_RDONLY:
            opened.add(Path(arguments[0]).name)

    ds = engine.make_engine(TinyLM(), OPTIM, DeepSpeedConfig(zero_stage=1), 10)
    engine.train_step(ds, [ds(*batch(0)[distributed.rank()])])
    sys.addaudithook(note)
    target = checkpoint.save(root, "sft", StageState(step=1), ds, "hash", SaveConfig(on_error="stop"))
    mine = sorted(opened)
    assert target is not None and manifest.defect(target) is None
    ranks = distributed.gather_objects(mine)
    if distributed.is_main():
        print("RESULT " + json.dumps({"opened": ranks, "files": sorted(manifest.read(target)["files"])}), flush=True)


if __name__ == "__main__":
    distributed.run(main)
