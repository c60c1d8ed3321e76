"""How full rows get, what that saves and how fast a plan is made, for the mix of images of MIG-Bench. Needs no GPU.

    python -m bench.packing [--window 512] [--budget 16384] [--batch 24] [--windows 20] [--out FILE.jsonl]

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
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from univg_fast.config import PackConfig, SftConfig
from univg_fast.data.coordinates import smart_resize
from univg_fast.data.windows import Planning, share_out, window_steps
from univg_fast.packing.plan import GroupSize, pack
from univg_fast.packing.report import figures, tally

from .device import Cpu
from .harness import stamp
from .run import save

Row = dict[str, Any]

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
    """Milliseconds of CPU of the fastest call."""
    taken = []
    for _ in range(repeats):
        began = time.process_time()
        function()
        taken.append(time.process_time() - began)
    return min(taken) * 1e3


def of_steps(drawn: list[list[GroupSize]], together: int, ranks: int, batch: int, budget: int) -> Row:
    """Where `together` steps are planned at once and dealt to `ranks`: fill of the rows, samples a step, passes of the
    rank with most rows, what the busiest rank has to do beyond the mean one, tokens below padded batches."""
    found, counts, passes = [], [], []
    for at, sizes in enumerate(drawn):
        for first in range(0, len(sizes), together * batch):
            part = sizes[first : first + together * batch]
            for by_rank in share_out(part, together, ranks, Planning(budget, len(part)), [0, at]):
                shares = [[[part[i] for i in row] for row in rows] for rows in by_rank]
                tallies = [tally([size for row in rows for size in row], rows, budget) for rows in shares]
                sums = {key: sum(one[key] for one in tallies) for key in tallies[0]}
                found.append(figures(sums, max(one["cost"] for one in tallies), ranks))
                counts.append(sum(len(row) for rows in by_rank for row in rows))
                passes.append(max(len(rows) for rows in by_rank))
    names = {"fill": "pack/fill", "imbalance": "pack/imbalance", "saved": "pack/saved"}  # the metrics of a step
    mean: Row = {name: float(np.mean([one[key] for one in found])) for name, key in names.items()}
    return mean | {"passes": float(np.mean(passes)), "fewest": min(counts), "most": max(counts)}


def measured(window: int, batch: int, budget: int, windows: int) -> list[Row]:
    """A row for each draw of sizes, number of ranks and window (0: each step by itself); then of the plan's time."""
    steps = window_steps(window, batch, sum(rows for rows, *_ in TASKS))
    out: list[Row] = []
    for draw in DRAWS:
        random = np.random.default_rng(0)
        found = samples(draw, random)
        drawn = [[found[i] for i in random.permutation(len(found))[: steps * batch]] for _ in range(windows)]
        base = {"bench": "packing", "draw": draw.name, "batch": batch, "budget": budget}
        base["mean_tokens"] = float(np.mean([size.tokens for size in found]))
        for ranks in (1, 2, 4, 8):
            for together in (steps, 1):
                row = {"ranks": ranks, "window": window if together > 1 else 0}
                out.append(base | row | of_steps(drawn, together, ranks, batch, budget))
    lengths = [size.tokens for size in found]
    for many in (lengths[:512], lengths, lengths * 8):
        taken = best_of(partial(pack, many, budget))
        out.append({"bench": "packing", "lengths": len(many), "plan_ms": taken})
    return out


def line(row: Row) -> str:
    if "plan_ms" in row:
        each = row["plan_ms"] / row["lengths"] * 1e3
        return f"plan of {row['lengths']:6,} lengths: {row['plan_ms']:6.1f} ms, {each:.2f} us each"
    ranks, samples_a_step = f"{row['ranks']} ranks, window {row['window']:3}", f"{row['fewest']} to {row['most']}"
    return (
        f"  {ranks}  fill {row['fill']:.2%}; {row['passes']:.1f} passes and {samples_a_step} samples a step; "
        f"the busiest has {row['imbalance']:.2%} more to do than the mean one; {row['saved']:.1%} below padded batches"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.packing", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--window", type=int, default=PackConfig().window)
    parser.add_argument("--budget", type=int, default=PackConfig().budget_tokens)
    parser.add_argument("--batch", type=int, default=SftConfig().per_step_samples)
    parser.add_argument("--windows", type=int, default=20, help="how many are drawn")
    parser.add_argument("--out", type=Path, help="write the rows to this file")
    given = parser.parse_args()
    print(f"rows of {given.budget:,} tokens, steps of {given.batch} samples")
    rows, draw = measured(given.window, given.batch, given.budget, given.windows), ""
    for row in rows:
        if row.get("draw", draw) != draw:
            draw = row["draw"]
            print(f"{draw}: {row['mean_tokens']:,.0f} tokens a sample in the mean")
        print(line(row))
    if given.out:
        save(given.out, rows, stamp(Cpu()))


if __name__ == "__main__":
    main()
