"""How full rows get, what that saves and how fast a plan is made, for the mix of images of MIG-Bench. Needs no GPU.

    python -m bench.packing [--window 512] [--budget 16384] [--batch 24] [--windows 20]

The ten tasks have MIG-Bench's numbers of rows and of images a row, as they are known: where only the range and the mean
are, the flattest distribution that has them. Its image sizes are not, so two assumptions stand side by side: every
image at the upper bound of data.max_pixels (512 tokens; the hardest to pack, since lengths are then near multiples of
it), and sizes usual in the sets that such benchmarks are drawn from. Texts: 60-160 tokens asked, 60-260 answered.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from univg_fast.config import PackConfig, SftConfig
from univg_fast.data.coordinates import smart_resize
from univg_fast.data.windows import Planning, share_out, window_steps
from univg_fast.packing.plan import GroupSize, pack, plan_window
from univg_fast.packing.report import figures, tally

FACTOR, PATCHES = 28, 4  # pixels of a token's side, and its patches: Qwen2-VL
# rows, fewest and most images of a row, their mean
TASKS = (
    (528, 2, 2, 2.0),
    (94, 2, 2, 2.0),
    (816, 3, 5, 4.19),
    (550, 6, 6, 6.0),
    (288, 2, 6, 4.0),
    (1203, 2, 4, 3.68),
    (99, 2, 2, 2.0),
    (499, 3, 5, 4.10),
    (101, 2, 2, 2.0),
    (117, 2, 2, 2.0),
)
USUAL = ((640, 480), (640, 427), (480, 640), (500, 375), (1280, 720), (1024, 768), (336, 336))
AT_THE_BOUND = ((896, 448),)


class Draw(NamedTuple):
    name: str
    sizes: tuple[tuple[int, int], ...]


DRAWS = (Draw("every image 512 tokens", AT_THE_BOUND), Draw("usual image sizes", USUAL))


def image_counts(random: np.random.Generator) -> np.ndarray:
    """Images of each of the benchmark's rows."""
    drawn = []
    for rows, low, high, mean in TASKS:
        values, chances = flattest(low, high, mean)
        drawn.append(random.choice(values, rows, p=chances))
    return np.concatenate(drawn)


def samples(draw: Draw, random: np.random.Generator) -> list[GroupSize]:
    """One stage-1 sample for each row of the benchmark."""
    tokens = [width * height // FACTOR**2 for width, height in (smart_resize(size) for size in draw.sizes)]
    found = []
    for count in image_counts(random):
        images = int(random.choice(tokens, count).sum())
        asked, answered = int(random.integers(60, 161)), int(random.integers(60, 261))
        found.append(GroupSize(asked + images, (answered,), images * PATCHES))
    return found


def flattest(low: int, high: int, mean: float) -> tuple[np.ndarray, np.ndarray]:
    """(values, probabilities) of the distribution on low..high of largest entropy that has this mean."""
    values, least, most = np.arange(low, high + 1), -9.0, 9.0
    chances = np.ones(len(values)) / len(values)
    while low < high and most - least > 1e-9:
        slope = (least + most) / 2
        chances = np.exp(slope * (values - low))
        chances /= chances.sum()
        least, most = (slope, most) if (values * chances).sum() < mean else (least, slope)
    return values, chances


def best_of(function: Callable[[], object], repeats: int = 3) -> float:
    """Milliseconds of the fastest call."""
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        taken.append(time.perf_counter() - began)
    return min(taken) * 1e3


def by_window(drawn: list[list[GroupSize]], steps: int, batch: int, budget: int) -> str:
    """Fill and samples of a step where `steps` steps are planned together."""
    fills, counts = [], []
    for at, sizes in enumerate(drawn):
        rows = []
        for first in range(0, len(sizes), steps * batch):
            part = sizes[first : first + steps * batch]
            planned = plan_window(part, steps, budget, [0, at])
            counts += [sum(map(len, step)) for step in planned]
            rows += [sum(part[i].tokens for i in row) for step in planned for row in step]
        fills.append(sum(rows) / (len(rows) * budget))
    return f"fill {np.mean(fills):.2%}, least {min(fills):.2%}; {min(counts)} to {max(counts)} samples a step"


def by_ranks(drawn: list[list[GroupSize]], steps: int, ranks: int, budget: int) -> str:
    """What a rank waits for another, in the mean over steps."""
    found = []
    for at, sizes in enumerate(drawn):
        for by_rank in share_out(sizes, steps, ranks, Planning(budget, len(sizes)), [0, at]):
            shares = [[[sizes[i] for i in row] for row in rows] for rows in by_rank]
            tallies = [tally([size for row in rows for size in row], rows, budget) for rows in shares]
            sums = {key: sum(one[key] for one in tallies) for key in tallies[0]}
            found.append(figures(sums, max(one["cost"] for one in tallies), ranks))
    mean = {key: float(np.mean([one[key] for one in found])) for key in found[0]}
    return (
        f"fill {mean['pack/fill']:.2%}; the busiest has {mean['pack/imbalance']:.2%} more to do than the mean one; "
        f"{mean['pack/saved']:.1%} below padded batches"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.packing", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--window", type=int, default=PackConfig().window)
    parser.add_argument("--budget", type=int, default=PackConfig().budget_tokens)
    parser.add_argument("--batch", type=int, default=SftConfig().per_step_samples)
    parser.add_argument("--windows", type=int, default=20, help="how many are drawn")
    given = parser.parse_args()
    steps = window_steps(given.window, given.batch, sum(rows for rows, *_ in TASKS))
    print(f"rows of {given.budget:,} tokens, steps of {given.batch} samples, windows of {steps} steps")
    for draw in DRAWS:
        random = np.random.default_rng(0)
        found = samples(draw, random)
        drawn = [
            [found[i] for i in random.permutation(len(found))[: steps * given.batch]] for _ in range(given.windows)
        ]
        print(f"{draw.name}: {np.mean([size.tokens for size in found]):,.0f} tokens a sample in the mean")
        print(f"  window on   {by_window(drawn, steps, given.batch, given.budget)}")
        print(f"  window off  {by_window(drawn, 1, given.batch, given.budget)}")
        for ranks in (2, 4, 8):
            print(f"  {ranks} ranks     {by_ranks(drawn, steps, ranks, given.budget)}")
    lengths = [size.tokens for size in found]
    for many in (lengths[:512], lengths, lengths * 8):
        taken = best_of(partial(pack, many, given.budget))
        print(f"plan of {len(many):6,} lengths: {taken:6.1f} ms, {taken / len(many) * 1e3:.2f} us each")


if __name__ == "__main__":
    main()
