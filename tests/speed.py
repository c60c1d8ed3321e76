"""What a call costs, in this process's CPU seconds. Other work on the machine may slow most tries, never all."""

from __future__ import annotations

import time
from collections.abc import Callable


def seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def within(limit: float, run: Callable[[], object], tries: int = 40) -> bool:
    """Whether one of some calls takes no more than `limit` seconds."""
    return any(seconds(run) <= limit for _ in range(tries))


def is_linear(run: Callable[[int], object], short: int, long: int, slack: float = 3, tries: int = 8) -> bool:
    """Whether `run(long)` takes at most `slack` times as long as work in proportion would, by the best of some tries.

    Choose `long / short` well above `slack`, for quadratic work to fail. 20 ms are given for what is constant.
    """
    best_short = best_long = float("inf")
    for _ in range(tries):
        best_short = min(best_short, seconds(lambda: run(short)))
        best_long = min(best_long, seconds(lambda: run(long)))
        if best_long <= long / short * slack * best_short + 0.02:
            return True
    return False
