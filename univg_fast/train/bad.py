"""Records that turn out bad while training (a truncated image, too many tokens): told once, counted, bounded."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from univg_fast import distributed
from univg_fast.files import append_rows
from univg_fast.structs import BadRecord
from univg_fast.train.state import StageState


class BadRecords:
    """Keeps count of the records of a stage's steps, the same on every rank, so that all stop together."""

    def __init__(self, max_fraction: float, state: StageState, run_dir: Path, stage: str) -> None:
        self.max_fraction, self.state = max_fraction, state
        self.path, self.stage = run_dir / "bad_records.jsonl", stage
        self._told: set[str] = set()

    def tell(self, bad: Sequence[BadRecord]) -> None:
        """Print this rank's bad records and add them to run.dir/bad_records.jsonl, each one once in a process."""
        fresh = {record.source: record for record in bad if record.source not in self._told}
        self._told.update(fresh)
        rows = [
            {"stage": self.stage, "step": self.state.step, "rank": distributed.rank()} | asdict(r)
            for r in fresh.values()
        ]
        for row in rows:
            print(f"rank {row['rank']}: skipped {row['message']}", file=sys.stderr, flush=True)
        append_rows(self.path, rows)

    def count(self, bad: float, seen: float) -> None:
        """Add a step's counts over all ranks. ValueError above the bound (of 100 records at least)."""
        state = self.state
        state.bad, state.seen = state.bad + bad, state.seen + seen
        if state.bad > self.max_fraction * max(state.seen, 100):
            raise ValueError(
                f"data.max_bad_fraction: {state.bad:.0f} of {state.seen:.0f} records could not be used, more than the "
                f"allowed fraction {self.max_fraction:g}; bad_records.jsonl in run.dir names them"
            )
