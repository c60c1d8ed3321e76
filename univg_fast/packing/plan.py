"""Which groups share a row, which rows make a step, which rank has which: pure functions of sizes and a seed.

Every rank plans all ranks' parts for itself, so a plan must depend on nothing else: not on timings, and what a step
holds not on the number of ranks. A prompt's tokens are charged once to the row that holds its responses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from heapq import heapify, heappop, heappush
from itertools import islice
from typing import NamedTuple

import numpy as np

# What an attended pair and a patch cost, in tokens: fixed, so that a resumed run plans the same. A token of Qwen2-VL-7B
# takes 13 GFLOP in the layers' products, a pair 4 x 3584 x 28 = 0.4 MFLOP, a patch 1.6 GFLOP in the tower.
PAIR = 1 / 32768
PATCH = 1 / 8  # where the tower trains
SEEN = PATCH / 3  # where it is frozen: forward only, beside a token's forward and backward passes
LOOK_AHEAD = 64  # groups of which a row takes those that fill it best
UNEVEN = 1 / 3  # how far a step's samples may be from their mean number, for rows of a whole window


@dataclass(frozen=True)
class GroupSize:
    """What decides the cost of a group: tokens of its prompt (images included) and responses, patches of its images."""

    prompt: int
    responses: tuple[int, ...]
    patches: int = 0
    patch_pairs: int = field(
        default=0, compare=False
    )  # patches of an image that attend to each other; for figures only
    patch: float = field(default=PATCH, compare=False)  # what one costs: PATCH, SEEN, or 0 where features stand in

    @property
    def tokens(self) -> int:
        return self.prompt + sum(self.responses)

    @property
    def pairs(self) -> int:
        """Of a query and a key that it attends to."""
        own = sum(n * (n + 1) // 2 for n in (self.prompt, *self.responses))
        return own + self.prompt * sum(self.responses)

    @property
    def cost(self) -> float:
        """In tokens."""
        return self.tokens + PAIR * self.pairs + self.patch * self.patches


class Part(NamedTuple):
    """A group in a row, or as many of its responses as fit one, behind a copy of the prompt."""

    group: int
    responses: tuple[int, ...]  # which of the group's
    size: GroupSize


def pack(lengths: Sequence[int], budget: int, most: int | None = None) -> list[list[int]]:
    """Indices of each row, of at most `budget` tokens and `most` members; one that is longer has a row of its own.

    `fullest`, whose rows are mixed and nearly full, unless `best_fit`, which has a bound, needs fewer rows.
    """
    return min(fullest(lengths, budget, most), best_fit(lengths, budget, most), key=len)


def fullest(lengths: Sequence[int], budget: int, most: int | None = None) -> list[list[int]]:
    """Each row takes the first that is left, and of those behind it the ones that fill it best, in O(n).

    Which sums can be reached is a bit set, so that the best of all subsets of the next LOOK_AHEAD costs as many shifts.
    """
    rows: list[list[int]] = []
    coming = iter(range(len(lengths)))
    left = list(islice(coming, LOOK_AHEAD))
    while left:
        row, room, mask = [left[0]], budget - lengths[left[0]], (2 << max(0, budget - lengths[left[0]])) - 1
        reached, before = 1, []
        for index in left[1:] if room > 0 else ():
            before.append((index, reached))
            reached |= (reached << lengths[index]) & mask
        total = reached.bit_length() - 1
        for index, without in reversed(before):
            if not without >> total & 1:
                row.append(index)
                total -= lengths[index]
        row = sorted(sorted(row, key=lambda i: -lengths[i])[:most] if most else row)
        rows.append(row)
        left = [index for index in left if index not in row]
        left.extend(islice(coming, LOOK_AHEAD - len(left)))
    return rows


def best_fit(lengths: Sequence[int], budget: int, most: int | None = None) -> list[list[int]]:
    """Best-fit decreasing, in O(n log n): at most 11/9 of the optimal number of rows, each of similar lengths."""
    rows: list[list[int]] = []
    rooms = 0  # bit r is set where rows with r tokens left are open
    with_room: dict[int, list[int]] = {}
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[index]
        fitting = rooms >> length if length <= budget else 0
        if fitting:
            left = length + (fitting & -fitting).bit_length() - 1
            row = with_room[left].pop()
            rooms ^= 0 if with_room[left] else 1 << left
        else:
            left, row = budget, len(rows)
            rows.append([])
        rows[row].append(index)
        left -= length
        if left > 0 and len(rows[row]) != most:
            with_room.setdefault(left, []).append(row)
            rooms |= 1 << left
    return [sorted(row) for row in rows]


def split(group: int, size: GroupSize, budget: int) -> list[Part]:
    """The group as a whole where the budget allows it, else in as few parts as hold its responses.

    No part exceeds the budget, unless the prompt with one response does. Then a part may add a quarter to the longer of
    prompt and budget, or a prompt would be computed once for every response to save little of a row.
    """
    if size.tokens <= budget or len(size.responses) < 2:
        return [Part(group, tuple(range(len(size.responses))), size)]
    room, longest = budget - size.prompt, max(size.responses)
    if room < longest:
        room = max(longest, max(budget, size.prompt) // 4)
    parts = pack(size.responses, room)
    return [Part(group, tuple(part), replace(size, responses=tuple(size.responses[j] for j in part))) for part in parts]


def plan_rows(sizes: Sequence[GroupSize], budget: int) -> list[list[Part]]:
    """Rows of whole groups, and of the parts of those that are too large for a row."""
    parts = [part for group, size in enumerate(sizes) for part in split(group, size, budget)]
    return [[parts[i] for i in row] for row in pack([part.size.tokens for part in parts], budget)]


def plan_window(sizes: Sequence[GroupSize], steps: int, budget: int, seed: Sequence[int]) -> list[list[list[int]]]:
    """Indices of each row of each step: rows packed over the whole window, then dealt to its `steps` steps.

    A step takes rows until it has near its share of the samples; which step has which rows is drawn from `seed`. Where
    that needs no fewer rows, or where rows are so long that whole ones leave steps too UNEVEN (a step of one row beside
    one of two), each step takes its own share, in the order given.
    """
    shares = [range(len(sizes) * k // steps, len(sizes) * (k + 1) // steps) for k in range(steps)]
    packed = [pack([sizes[i].tokens for i in share], budget) for share in shares]
    rows = pack([size.tokens for size in sizes], budget, most=max(1, len(sizes) // steps)) if steps > 1 else []
    random = np.random.default_rng(list(seed))
    rows = [rows[i] for i in random.permutation(len(rows))]
    dealt = deal([len(row) for row in rows], steps, even=False)
    off = max(abs(sum(len(rows[i]) for i in hand) - len(sizes) / steps) for hand in dealt)
    if steps == 1 or len(rows) >= sum(map(len, packed)) or off > max(1, UNEVEN * len(sizes) / steps):
        return [[[share[i] for i in row] for row in rows] for share, rows in zip(shares, packed, strict=True)]
    return [[rows[i] for i in dealt[k]] for k in random.permutation(steps)]


def deal(costs: Sequence[float], hands: int, even: bool = True) -> list[list[int]]:
    """Longest-processing-time: each index, dearest first, to the hand with least. `even`: none gets more than ceil."""
    most = -(-len(costs) // hands) if even else len(costs)
    dealt: list[list[int]] = [[] for _ in range(hands)]
    heap = [(0.0, hand) for hand in range(hands)]
    for index in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        load, hand = heappop(heap)
        dealt[hand].append(index)
        if len(dealt[hand]) < most:
            heappush(heap, (load + costs[index], hand))
    return [sorted(hand) for hand in dealt]


def spread(rows: Sequence[Sequence[int]], sizes: Sequence[GroupSize], ranks: int, budget: int) -> list[list[list[int]]]:
    """The rows of a step over ranks: of near-equal cost, and the same number for each where there are members enough.

    Rows that cannot be shared out evenly are packed anew, less full: room in a row costs nothing, a waiting rank does.
    """
    if ranks == 1:
        return [[list(row) for row in rows]]
    members = [i for row in rows for i in row]
    count = -(-len(rows) // ranks) * ranks
    while (level := _level(members, sizes, count, budget)) is None:
        if count == len(rows):
            level = [list(row) for row in rows]
            break
        count += ranks
    hands = deal([sum(sizes[i].cost for i in row) for row in level], ranks)
    return [[level[i] for i in hand] for hand in hands]


def _level(members: Sequence[int], sizes: Sequence[GroupSize], count: int, budget: int) -> list[list[int]] | None:
    """`count` rows of near-equal cost, those without members left out; None where one does not fit any more."""
    rows: list[list[int]] = [[] for _ in range(count)]
    heap = [(0.0, 0, row) for row in range(count)]  # cost, tokens, row
    heapify(heap)
    for index in sorted(members, key=lambda i: (-sizes[i].cost, i)):
        length, full = sizes[index].tokens, []
        while heap and heap[0][1] and heap[0][1] + length > budget:
            full.append(heappop(heap))
        if not heap:
            return None
        cost, tokens, row = heappop(heap)
        rows[row].append(index)
        for entry in (*full, (cost + sizes[index].cost, tokens + length, row)):
            heappush(heap, entry)
    return [sorted(row) for row in rows if row]
