"""Run by test_watchdog.py as each of three ranks: `watch_worker.py FOLDER`; rank_N.json is whose words rank N reads."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch.distributed as dist

from univg_fast import distributed
from univg_fast.train.phases import Phases
from univg_fast.train.watchdog import Watchdog


class Noting:
    """A store, and which ranks' words were read from it."""

    def __init__(self, store: Any):
        self._store, self.read = store, set[str]()

    def multi_get(self, keys: list[str]) -> Any:
        self.read.update(key.rpartition("/")[2] for key in keys)
        return self._store.multi_get(keys)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def main() -> None:
    folder = Path(sys.argv[1])
    dist.init_process_group("gloo")
    phases = Phases()
    phases.stage, phases.step = "sft", 7
    with Watchdog(phases, 8.0, folder / "logs") as watchdog, phases("update"):
        watchdog.store = noting = Noting(watchdog.store)
        began = time.monotonic()
        while time.monotonic() - began < 10 * watchdog.tick:
            phases.beat()
            time.sleep(0.1)
        (folder / f"rank_{distributed.rank()}.json").write_text(json.dumps(sorted(noting.read)))
        distributed.barrier()
        if distributed.rank() < 2:
            os.kill(os.getpid(), signal.SIGKILL)
        while time.monotonic() - began < 200:
            phases.beat()
            time.sleep(0.1)


if __name__ == "__main__":
    distributed.run(main)
