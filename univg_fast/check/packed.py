"""What packing saves: the trainer's own plan, over the real lengths of every step of one epoch."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from univg_fast.check.look import Counts
from univg_fast.data.mix import Mix
from univg_fast.packing import plan_rows


@dataclass(frozen=True)
class Packing:
    """Sums over one epoch and all ranks. A group is a prompt with its G responses (G = 1 in stage 1)."""

    steps: int
    groups: int
    generations: int  # G
    response_tokens: float  # mean of one response
    tokens: int  # packed: each prompt once
    separate: int  # each response with a copy of its prompt, no padding
    padded: int  # the same, each padded to the longest of a rank's step
    room: int  # what the packed rows could hold
    rows: int
    over_budget: int  # groups longer than pack.budget_tokens: each gets a row of its own
    image_tokens: int  # of each prompt once
    longest_row: int  # tokens
    largest_images: int  # image tokens of the row that has most

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
    generations: int = 1,
    response_tokens: int | None = None,
) -> Packing:
    """Plan every step of the first epoch in the loader's order.

    `batch`: records of a step over all ranks. `response_tokens`: None for each record's own (stage 1). Records of 0
    prompt tokens turned out bad and are left out.
    """
    sums: Counter[str] = Counter()
    longest = largest = 0
    order = mix.order(seed, 0)
    for first in range(0, len(order), batch):
        step = order[first : first + batch]
        for rank in range(ranks):
            mine = [i for i in step[rank::ranks].tolist() if counts.prompt[i]]
            if not mine:
                continue
            responses = [counts.response[i] if response_tokens is None else response_tokens for i in mine]
            lengths = [counts.prompt[i] + generations * r for i, r in zip(mine, responses, strict=True)]
            singles = [counts.prompt[i] + r for i, r in zip(mine, responses, strict=True)]
            rows = plan_rows(lengths, budget)
            filled = [sum(lengths[k] for k in row) for row in rows]
            images = [sum(counts.image_tokens[mine[k]] for k in row) for row in rows]
            longest, largest = max(longest, *filled), max(largest, *images)
            sums.update(
                groups=len(mine),
                responses=sum(responses),
                tokens=sum(lengths),
                separate=generations * sum(singles),
                padded=generations * max(singles) * len(singles),
                room=sum(max(n, budget) for n in filled),
                rows=len(rows),
                over_budget=sum(n > budget for n in lengths),
                image_tokens=sum(images),
            )
    return Packing(
        steps=-(-len(order) // batch),
        groups=sums["groups"],
        generations=generations,
        response_tokens=sums["responses"] / max(1, sums["groups"]),
        tokens=sums["tokens"],
        separate=sums["separate"],
        padded=sums["padded"],
        room=sums["room"],
        rows=sums["rows"],
        over_budget=sums["over_budget"],
        image_tokens=sums["image_tokens"],
        longest_row=longest,
        largest_images=largest,
    )
