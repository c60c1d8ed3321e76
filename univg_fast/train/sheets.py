"""Picture sheets while a run trains: a page of a step's prompts, with boxes, rewards and advantages."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from univg_fast import distributed
from univg_fast.report import write_sheet

Rows = Sequence[dict[str, Any]]  # lines of rollouts/


class WriteSheet(Protocol):
    def __call__(self, step: int, lines: Callable[[], Rows]) -> None: ...


@contextmanager
def sheets(run_dir: Path, stage: str, every: int) -> Iterator[WriteSheet]:
    """`write(step, lines)` makes sheets/STAGE_STEP.html of this rank's rows every so many steps; 0: never. Rank 0 only.

    A thread does it, beside the next step. A sheet that fails is told and ends nothing.
    """
    if not every or not distributed.is_main():
        yield lambda step, lines: None
        return

    def make(step: int, rows: Rows) -> None:
        try:
            write_sheet(run_dir, stage, step, rows)
        except Exception as error:  # whatever it is: pictures are no reason to end a run
            print(
                f"warning: no sheet of {stage} step {step}: {type(error).__name__}: {error}",
                file=sys.stderr,
                flush=True,
            )

    with ThreadPoolExecutor(1, thread_name_prefix="sheets") as pool:

        def write(step: int, lines: Callable[[], Rows]) -> None:
            if step % every == 0 and (rows := lines()):
                pool.submit(make, step, rows)

        yield write
