"""The order of records as a pure function of (seed, epoch), with a weight for each file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from zlib import crc32

import numpy as np


@dataclass(frozen=True)
class Mix:
    """Files of `sizes` records, end to end; an epoch takes each file's records `weight` times, 1 is each of them once.

    With 0.5 an epoch takes half of the file, the next epoch the other half; with 2 each record comes twice.
    """

    sizes: tuple[int, ...]
    weights: tuple[float, ...]

    @property
    def shares(self) -> tuple[int, ...]:
        """Records that each file gives to an epoch: at least one of a file that has any."""
        pairs = zip(self.sizes, self.weights, strict=True)
        return tuple(max(1, round(size * weight)) if size else 0 for size, weight in pairs)

    @property
    def epoch(self) -> int:
        """Records of an epoch."""
        return sum(self.shares)

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """[self.epoch] int64: the records of one epoch, in order."""
        return _order(self, seed, epoch)


@lru_cache(maxsize=4)
def _order(mix: Mix, seed: int, epoch: int) -> np.ndarray:
    if mix.shares == mix.sizes:
        return np.random.default_rng([seed, epoch]).permutation(sum(mix.sizes))
    parts, first = [], 0
    for number, (size, share) in enumerate(zip(mix.sizes, mix.shares, strict=True)):
        if size:
            parts.append(first + _pass(size, seed, number, epoch * share, share))
        first += size
    taken = np.concatenate(parts)
    return taken[np.random.default_rng([seed, epoch]).permutation(len(taken))]


def _pass(size: int, seed: int, number: int, start: int, share: int) -> np.ndarray:
    """`share` records of a file from place `start` on, in its endless sequence of permutations."""
    rounds = range(start // size, (start + share - 1) // size + 1)
    endless = np.concatenate([np.random.default_rng([seed, number, r]).permutation(size) for r in rounds])
    return endless[start - rounds[0] * size :][:share]


def times_before(items: Iterable[Hashable]) -> list[int]:
    """Of each item, how many equal ones stand before it."""
    seen: Counter[Hashable] = Counter()
    before = []
    for item in items:
        before.append(seen[item])
        seen[item] += 1
    return before


def turn(seed: int, batch: int, uid: str, repeat: int) -> int:
    """Where a prompt stands in its batch of stage 2: pseudo-random, and the same whatever rank has it."""
    return crc32(f"{seed} {batch} {uid} {repeat}".encode())


def mix_of(records: Sequence[Any]) -> Mix:
    """The mix that the records come with; each once for a plain list."""
    mix = getattr(records, "mix", None)
    return mix if isinstance(mix, Mix) else Mix((len(records),), (1.0,))
