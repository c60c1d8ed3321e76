"""Things that go wrong on purpose, once, at a given rank, stage, step and phase: `--fault.kind=sigkill --fault.step=3`.

Each firing is first noted in run.dir/crash/fired_rankN.json and not done again there, so that the same command goes on.
Nothing here runs where fault.kind is none.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from univg_fast import distributed
from univg_fast.config.schema import FaultConfig
from univg_fast.files import write_whole
from univg_fast.structs import Record
from univg_fast.train.phases import NAMES, Phases

SIGNALS = {"sigterm": signal.SIGTERM, "sigint": signal.SIGINT, "sigkill": signal.SIGKILL}
WITHOUT_STEPS = ("load", "eval")
PHASES = {"nan_loss": "update", "nan_gradient": "update", "disk_full": "save", "bad_image": "data"}


class Faults:
    """What `config` says, done on this rank. In phases that are of no step, `step` is not looked at."""

    def __init__(self, config: FaultConfig, phases: Phases, folder: Path) -> None:
        self.config, self.phases, self.folder = config, phases, folder
        self.phase = PHASES.get(config.kind, config.phase)
        self.file = folder / f"fired_rank{distributed.rank()}.json"
        self.fired: list[str] = []
        self.entered: set[str] = set()  # phases of this start
        self.now = False  # whether the step under way is to get its NaN, or its full disk
        self.model: nn.Module | None = None
        self.armed = config.kind != "none" and config.rank == distributed.rank()
        if config.kind == "none":
            return
        if config.rank >= distributed.world_size():
            raise ValueError(f"fault.rank: expected below the {distributed.world_size()} ranks, got {config.rank}")
        if self.phase not in NAMES:
            raise ValueError(f"fault.phase: expected one of {', '.join(NAMES)}, got {self.phase}")
        if self.file.is_file():
            self.fired = json.loads(self.file.read_text())
        if self.armed:
            phases.watchers.append(self.on_entering)
            self._say(f"armed: step {config.step} of {config.stage or 'any stage'}, phase {self.phase}")

    def on_entering(self, name: str, step: int) -> None:
        """A watcher of phases."""
        self.entered.add(name)
        where = f"{self.config.kind} {self.phases.stage} {step} {name}"
        first = self._is_due(name, step, where)
        self.now = first or (self.now and where == self.fired[-1])  # entered again, with the next row
        if not first:
            return
        self.fired.append(where)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.file, json.dumps(self.fired))
        self._say(f"now: {where}")
        if self.config.kind in SIGNALS:
            os.kill(os.getpid(), SIGNALS[self.config.kind])
        elif self.config.kind == "slow":
            time.sleep(self.config.seconds)
        elif self.config.kind == "nan_gradient":
            self._poison_gradient()
        while self.config.kind == "hang":
            time.sleep(0.1)

    def tell_if_it_never_came(self) -> None:
        """For the run's end: a drill that did not happen must not pass for one that went well."""
        if self.armed and not self.fired:
            config = self.config
            step = "" if self.phase in WITHOUT_STEPS else f"step {config.step} of "
            self._say(
                f"never came: this start had no phase {self.phase} in {step}{config.stage or 'any stage'}; "
                f"its phases were {', '.join(sorted(self.entered)) or 'none'}"
            )

    def into_model(self, model: nn.Module) -> None:
        """nan_loss and nan_gradient: of this model's rows."""
        if not self.armed:  # or the model would live as long as this
            return
        self.model = model
        if self.config.kind == "nan_loss":
            model.register_forward_hook(self._poison_loss)

    def into_loader(self, loader: Any) -> None:
        """bad_image: in the first record of this rank's part of the step, whose image is cut off in its middle."""
        if not (self.armed and self.config.kind == "bad_image" and self.config.stage in (None, self.phases.stage)):
            return
        worse: dict[int, Record] = {}
        for step in range(self.config.step - 1, self.config.step - 1 + self.config.times):
            index = next(index for row in loader.share(step).rows for index in row)
            worse[index] = self._with_cut_image(loader.records[index])
        loader.records = _Changed(loader.records, worse)

    def on_write(self) -> None:
        """disk_full: called before each large file of a checkpoint, which is a sign of life, too."""
        self.phases.beat()
        if self.now and self.config.kind == "disk_full":
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} (injected)")

    def _is_due(self, name: str, step: int, where: str) -> bool:
        config = self.config
        first = step if name in WITHOUT_STEPS else config.step
        due = name == self.phase and first <= step < first + config.times and config.stage in (None, self.phases.stage)
        return due and where not in self.fired

    def _poison_loss(self, model: nn.Module, arguments: Any, output: Any) -> Any:
        """A forward hook. The loss is the first of what a loss's head returns; other heads return a tensor."""
        if not (self.now and self.phases.name == "update" and isinstance(output, tuple)):
            return None
        loss = output[0] * float("nan")
        return output._replace(loss=loss) if hasattr(output, "_replace") else (loss, *output[1:])

    def _poison_gradient(self) -> None:
        assert self.model is not None
        parameter = next(p for p in self.model.parameters() if p.requires_grad)

        def once(gradient: torch.Tensor) -> torch.Tensor:
            handle.remove()
            return gradient * float("nan")

        handle = parameter.register_hook(once)

    def _with_cut_image(self, record: Record) -> Record:
        image = Path(record.images[0])
        self.folder.mkdir(parents=True, exist_ok=True)
        cut = self.folder / f"cut_{image.name}"
        content = image.read_bytes()
        cut.write_bytes(content[: len(content) // 2])
        self._say(f"now: bad_image, {record.source} with {cut}")
        return replace(record, images=(str(cut), *record.images[1:]))

    def _say(self, text: str) -> None:
        print(f"FAULT {self.config.kind} on rank {self.config.rank}, {text}", file=sys.stderr, flush=True)


class _Changed:
    """Records, some of them others."""

    def __init__(self, records: Sequence[Record], others: dict[int, Record]) -> None:
        self.records, self.others = records, others

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        return self.others.get(index) or self.records[index]
