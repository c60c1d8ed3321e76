"""What packing saves: the trainer's own plan, over the real lengths of every step of one epoch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from univg_fast.check.look import Counts
from univg_fast.data.mix import Mix
from univg_fast.data.windows import Planning, share_out, window_steps
from univg_fast.packing.plan import PATCH, GroupSize, plan_rows
from univg_fast.packing.report import figures, tally

MERGED = 4  # patches of an image token, in every family so far
NAMED = 20  # records over the budget that are told one by one


@dataclass(frozen=True)
class Packing:
    """Sums over one epoch and all ranks. A group is a prompt with its G responses (G = 1 in stage 1)."""

    steps: int
    groups: int
    generations: int  # G
    response_tokens: float  # mean of one response
    tokens: int  # packed: each prompt once, or once in each row that holds a part of its group
    separate: int  # each response with a copy of its prompt, no padding
    padded: int  # the same, each padded to the longest of a rank's step
    room: int  # what the packed rows could hold
    rows: int
    over_budget: int  # rows longer than pack.budget_tokens: one prompt with one response is
    image_tokens: int  # of the packed prompts
    longest_row: int  # tokens
    largest_images: int  # image tokens of the row that has most
    imbalance: float = 0.0  # mean over steps: how much more the dearest rank costs than the mean rank
    over: tuple[tuple[int, int], ...] = ()  # of the first rows over the budget: (record, tokens of the row)

    @property
    def fill(self) -> float:
        return self.tokens / max(1, self.room)

    @property
    def shared(self) -> float:
        """Fraction of tokens saved by computing each prompt once."""
        return 1 - self.tokens / max(1, self.separate)

    @property
    def saved(self) -> float:
        """Fraction saved against padded batches of separate sequences."""
        return 1 - self.tokens / max(1, self.padded)


def pack_epoch(
    counts: Counts,
    mix: Mix,
    *,
    batch: int,
    seed: int,
    ranks: int,
    budget: int,
    window: int = 0,
    generations: int = 1,
    response_tokens: int | None = None,
    patch: float = PATCH,
) -> Packing:
    """Plan every step of the first epoch in the loader's order.

    `batch`: records of a step over all ranks. `response_tokens`: None for each record's own (stage 1, planned in
    windows of `window` records). `patch`: what one costs (packing/plan.py). Records of 0 prompt tokens turned out bad
    and are left out.
    """
    sums: Counter[str] = Counter()
    over: dict[int, int] = {}
    longest = largest = steps = 0
    imbalance = 0.0
    order = mix.order(seed, 0)
    span = batch * (window_steps(window, batch, mix.epoch) if response_tokens is None else 1)
    for number, first in enumerate(range(0, len(order), span)):
        indices = order[first : first + span]
        good = [i for i in indices.tolist() if counts.prompt[i]]
        sizes = [replace(_size(counts, i, generations, response_tokens), patch=patch) for i in good]
        here = -(-len(indices) // batch)
        planned = _steps(sizes, here, ranks, budget, window, [seed, number], response_tokens is None)
        for by_rank in planned:
            steps += 1
            tallies = [
                tally([sizes[i] for i in members], [[size for _, size in row] for row in rows], budget)
                for members, rows in by_rank
            ]
            total = Counter({key: sum(part[key] for part in tallies) for key in tallies[0]})
            sums.update(total)
            imbalance += figures(total, max(part["cost"] for part in tallies), ranks)["pack/imbalance"]
            for members, rows in by_rank:
                sums.update(responses=sum(sizes[i].responses[0] for i in members))
                for row in rows:
                    images, tokens = sum(size.patches for _, size in row) // MERGED, sum(s.tokens for _, s in row)
                    sums.update(image_tokens=images)
                    longest, largest = max(longest, tokens), max(largest, images)
                    if tokens > budget and len(over) < NAMED:
                        over.setdefault(good[row[0][0]], tokens)
    return Packing(
        steps=steps,
        groups=int(sums["groups"]),
        generations=generations,
        response_tokens=sums["responses"] / max(1, sums["groups"]),
        tokens=int(sums["packed_tokens"]),
        separate=int(sums["separate_tokens"]),
        padded=int(sums["padded_tokens"]),
        room=int(sums["room"]),
        rows=int(sums["rows"]),
        over_budget=int(sums["over_budget"]),
        image_tokens=int(sums["image_tokens"]),
        longest_row=longest,
        largest_images=largest,
        imbalance=imbalance / max(1, steps),
        over=tuple(over.items()),
    )


def _size(counts: Counts, index: int, generations: int, response_tokens: int | None) -> GroupSize:
    response = counts.response[index] if response_tokens is None else response_tokens
    return GroupSize(counts.prompt[index], (response,) * generations, counts.image_tokens[index] * MERGED)


def _steps(
    sizes: Sequence[GroupSize],
    steps: int,
    ranks: int,
    budget: int,
    window: int,
    seed: Sequence[int],
    known: bool,
) -> Iterator[list[tuple[list[int], list[list[tuple[int, GroupSize]]]]]]:
    """Of each step, of each rank: the numbers of its groups, and each of its rows, groups or parts with their sizes.

    `known`: lengths are known before the step, as in stage 1. In stage 2 prompts are dealt to ranks first, and each
    rank packs its groups.
    """
    rule = Planning(budget, window) if known else Planning()
    prompts = sizes if known else [replace(size, responses=()) for size in sizes]
    for by_rank in share_out(prompts, steps, ranks, rule, seed):
        found = []
        for rows in by_rank:
            members = [i for row in rows for i in row]
            if known:
                held = [[(i, sizes[i]) for i in row] for row in rows]
            else:
                parts = plan_rows([sizes[i] for i in members], budget)
                held = [[(members[part.group], part.size) for part in row] for row in parts]
            found.append((members, held))
        yield found
