"""When a stage is saved: every save.steps, where run.max_steps ends it, where it is left in the middle, at its end."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from univg_fast.config import Config, config_hash
from univg_fast.train import checkpoint
from univg_fast.train.faults import Faults
from univg_fast.train.phases import Phases
from univg_fast.train.reshape import frozen_sum
from univg_fast.train.state import StageState


class Saves:
    """The checkpoints of one stage in run_dir/ckpt. Every method is collective.

    last, total: the step that ends this run, and the one that ends the stage.
    """

    def __init__(
        self,
        stage: str,
        config: Config,
        run_dir: Path,
        state: StageState,
        engine: Any,
        phases: Phases,
        faults: Faults,
        last: int,
        total: int,
    ) -> None:
        self.stage, self.how, self.folder = stage, config.save, run_dir / "ckpt"
        self.state, self.engine, self.phases, self.faults = state, engine, phases, faults
        self.last, self.total = last, total
        self.config_id = config_hash(config)
        self.safe = state.step  # the step that a checkpoint holds; where the stage begins there is nothing to lose
        self._due = False

    @cached_property
    def _frozen(self) -> int:
        """Once a stage: all weights that do not train are read for it."""
        return frozen_sum(self.engine.module)

    def write(self, must: bool) -> None:
        """Not `must`: one of many, which may fail where save.on_error=warn."""
        with self.phases("save"):
            done = checkpoint.save(
                self.folder,
                self.stage,
                self.state,
                self.engine,
                self.config_id,
                self.how,
                frozen=self._frozen,
                must=must,
                on_write=self.faults.on_write,
                beat=self.phases.beat,
            )
        if done is not None:
            self.safe = self.state.step

    def what_is_not_safe(self, must: bool = True) -> None:
        """Save the steps that no checkpoint holds, if there are any."""
        if self.state.step > self.safe:
            self.write(must)

    def after_step(self) -> None:
        """What is due waits for a step that moved a weight: a checkpoint of one that did not takes the place of one
        that did."""
        step = self.state.step
        self._due = self._due or is_save_step(step, self.last, self.total, self.how.steps)
        if self._due and (step == self.last or not self.state.skipped_in_a_row):
            self.write(must=step == self.last)
            self._due = False


def is_save_step(step: int, last: int, total: int, every: int) -> bool:
    """Whether a checkpoint follows: every so many steps, and where run.max_steps ends the stage early."""
    return step == last < total or (step < last and every > 0 and step % every == 0)
