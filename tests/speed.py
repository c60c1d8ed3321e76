"""What a call costs, in this process's CPU seconds. Other work on the machine may slow most tries, never all.

Limits in seconds are those of a machine that does `yardstick` in YARD_S. Others get theirs in proportion, and twice
that, since no yardstick is the work: what is guarded are roads that cost many times as much.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable

YARD_S = 0.0055
WORDS = "The cup in the first image is left of the plate; in Image-2 it stands by the window (half way). " * 60


def seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def yardstick() -> None:
    """Some milliseconds of what Python does with texts."""
    found: dict[str, int] = {}
    for word in re.findall(r"[A-Za-z0-9-]++", WORDS * 30):
        found[word] = found.get(word, 0) + len(word)


def within(limit: float, run: Callable[[], object], tries: int = 40) -> bool:
    """Whether one of some calls takes no more than `limit` seconds, or what these are on a slower machine."""
    best = yard = float("inf")
    for _ in range(tries):
        best = min(best, seconds(run))
        if best <= limit:
            return True
        yard = min(yard, seconds(yardstick))
    return best <= limit * 2 * yard / YARD_S


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
