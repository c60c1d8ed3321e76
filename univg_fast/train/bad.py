"""Records that turn out bad while training (a truncated image, too many tokens): told once, counted, bounded."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from univg_fast import distributed
from univg_fast.structs import BadRecord
from univg_fast.train.state import StageState


class BadRecords:
    """Keeps count of the records of a stage's steps, the same on every rank, so that all stop together."""

    def __init__(self, max_fraction: float, state: StageState) -> None:
        self.max_fraction, self.state = max_fraction, state
        self._told: set[str] = set()

    def tell(self, bad: Sequence[BadRecord]) -> None:
        """Print this rank's bad records, each one once in a run."""
        for record in bad:
            if record.source not in self._told:
                self._told.add(record.source)
                print(f"rank {distributed.rank()}: skipped {record.message}", file=sys.stderr, flush=True)

    def count(self, bad: float, seen: float) -> None:
        """Add a step's counts over all ranks. ValueError above the bound (of 100 records at least)."""
        state = self.state
        state.bad, state.seen = state.bad + bad, state.seen + seen
        if state.bad > self.max_fraction * max(state.seen, 100):
            raise ValueError(
                f"data.max_bad_fraction: {state.bad:.0f} of {state.seen:.0f} records could not be used, more than the "
                f"allowed fraction {self.max_fraction:g}; the lines 'skipped ...' above name some of them"
            )
