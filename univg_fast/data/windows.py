"""What each rank gets in each step, planned window by window from lengths that need no decoding.

The places of all epochs, end to end, are cut into windows of whole steps. A window is planned at once: its plan, and so
every step's records, depend on (seed, window) alone, and a step number says which window it is in.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event
from time import sleep
from typing import TypeVar
from zlib import crc32

import numpy as np

from univg_fast.packing.plan import PATCH, GroupSize, deal, plan_window, spread
from univg_fast.structs import BadRecord, Record

from .errors import SampleError, unexpected
from .images import PROBE_THREADS, Headers, Known
from .index import Records
from .mix import Mix, mix_of, times_before, turn
from .samples import Processor, measure

T = TypeVar("T")
CHUNK = 512  # headers that are read between two looks at whether the loader was closed
SECOND_LOOK_S = 0.2  # after which a header is read again, once: a rank that fails alone would plan by itself


@dataclass(frozen=True)
class Planning:
    """How steps become rows. `budget`: tokens of a row; None: a rank's records of a step are one list (stage 2)."""

    budget: int | None = None
    window: int = 0  # records planned together; fewer than a step's: each step by itself
    parts: int = 1  # of a list, in the order of `turn`: ranks get like shares of each (mini-batches of stage 2)
    patch: float = PATCH  # what a patch costs (packing/plan.py)


@dataclass(frozen=True)
class Share:
    """One rank's part of a step."""

    rows: list[list[int]]  # record indices of each row
    repeats: list[list[int]]  # of each of them, how often the record came before in the step, on any rank
    passes: int  # the largest number of rows of any rank
    bad: list[BadRecord]  # refused while measuring; each is one rank's to tell
    refused: list[BadRecord]  # all that this rank refused in the window
    digest: int  # of all ranks' parts: equal on all of them, or they did not read the same data


def window_steps(window: int, batch_size: int, epoch: int) -> int:
    """Steps of a window: at most an epoch's records, at least one step."""
    return max(1, min(window, epoch) // batch_size)


def places(mix: Mix, seed: int, first: int, last: int) -> list[int]:
    """Record indices at places first to last - 1 of the epochs' orders, end to end."""
    at = (divmod(place, mix.epoch) for place in range(first, last))
    return [int(mix.order(seed, epoch)[place]) for epoch, place in at]


def share_out(
    sizes: Sequence[GroupSize],
    steps: int,
    ranks: int,
    planning: Planning,
    seed: Sequence[int],
    order: Sequence[int] | None = None,
) -> list[list[list[list[int]]]]:
    """Of each step, of each rank, of each row: the members, by their number in `sizes`.

    `order`: in which `planning.parts` are cut; as they come if None.
    """
    if planning.budget is None:
        assert steps == 1, "without a budget each step is planned by itself"
        order = range(len(sizes)) if order is None else order
        hands = deal_parts([size.cost for size in sizes], cut(order, planning.parts), ranks)
        return [[[hand] if hand else [] for hand in hands]]
    planned = plan_window(sizes, steps, planning.budget, seed)
    return [spread(rows, sizes, ranks, planning.budget) for rows in planned]


def cut(items: Sequence[T], parts: int) -> list[Sequence[T]]:
    """Consecutive parts of near-equal length."""
    return [items[len(items) * k // parts : len(items) * (k + 1) // parts] for k in range(parts)]


def deal_parts(costs: Sequence[float], parts: Sequence[Sequence[int]], ranks: int) -> list[list[int]]:
    """What each rank gets: a like share of each part, the largest one where there is least so far."""
    hands: list[list[int]] = [[] for _ in range(ranks)]

    def load(hand: Sequence[int]) -> tuple[int, float]:
        return len(hand), sum(costs[i] for i in hand)

    for part in map(sorted, parts):
        dealt = [[part[k] for k in hand] for hand in deal([costs[i] for i in part], ranks)]
        for hand, more in zip(sorted(hands, key=load), sorted(dealt, key=load, reverse=True), strict=True):
            hand += more
    return [sorted(hand) for hand in hands]


class Windows:
    """Plans windows; `plan` may be called from any thread.

    `num_steps`: of the whole stage, where it is known: the last window then takes no record that no step would use.
    """

    def __init__(
        self,
        records: Sequence[Record],
        processor: Processor,
        batch_size: int,
        seed: int,
        with_response: bool,
        world_size: int,
        planning: Planning,
        num_steps: int | None,
    ):
        self.records, self.processor, self.batch_size = records, processor, batch_size
        self.seed, self.with_response, self.world_size = seed, with_response, world_size
        self.planning, self.num_steps = planning, num_steps
        self.mix = mix_of(records)
        self.steps = window_steps(planning.window if planning.budget else 0, batch_size, self.mix.epoch)
        self._headers = Headers()  # of a plain list; what a scan found knows its images' sizes
        self._known = np.zeros((len(records), 3), np.int32)  # tokens of prompt and response, patches; 0 tokens: not yet
        self.stop = Event()  # set it to end a plan that is under way, between two records

    def place(self, step: int) -> tuple[int, int]:
        """(window, step of the window)."""
        return divmod(step, self.steps)

    def indices(self, window: int) -> list[int]:
        """The window's records in the order of their epochs."""
        first, last = window * self.steps, (window + 1) * self.steps
        if self.num_steps is not None:
            last = min(last, self.num_steps)
        return places(self.mix, self.seed, first * self.batch_size, last * self.batch_size)

    def plan(self, window: int, rank: int) -> list[Share]:
        """This rank's share of each step of the window."""
        indices = self.indices(window)
        steps = len(indices) // self.batch_size
        good, sizes, refused = self._measured(indices)
        everything = [entry for _, entry in refused]
        shares, order = [], self._order(window, good) if self.planning.budget is None else None
        for k, step in enumerate(share_out(sizes, steps, self.world_size, self.planning, [self.seed, window], order)):
            by_rank = [[[good[i] for i in row] for row in rows] for rows in step]
            held = sorted(i for rows in step for row in rows for i in row)  # the step's, whatever rank has them
            before = dict(zip(held, times_before(good[i] for i in held), strict=True))
            repeats = [[before[i] for i in row] for row in step[rank]]
            bad = [entry for at, entry in refused if at % steps == k and at // steps % self.world_size == rank]
            digest = crc32(repr(by_rank).encode())
            shares.append(Share(by_rank[rank], repeats, max(map(len, by_rank)), bad, everything, digest))
        return shares

    def _order(self, step: int, indices: Sequence[int]) -> list[int]:
        """The step's records, by number, in the order in which its optimizer steps take them."""
        found = zip(map(self.records.__getitem__, indices), times_before(indices), strict=True)
        turns = [(turn(self.seed, step, record.uid, repeat), record.source) for record, repeat in found]
        return sorted(range(len(turns)), key=turns.__getitem__)

    def _measured(self, indices: Sequence[int]) -> tuple[list[int], list[GroupSize], list[tuple[int, BadRecord]]]:
        """Those that will give samples with their sizes, and the others with their number in the window."""
        unknown = [index for index in dict.fromkeys(indices) if not self._known[index, 0]]
        found = [self.records[index] for index in self._until_stopped(unknown)]
        if not isinstance(self.records, Records):
            self._look_at([path for record in found for path in record.images])
        bad: dict[int, BadRecord] = {}
        for index, record in self._until_stopped(zip(unknown, found, strict=True)):
            try:
                size = measure(record, self.processor, self.with_response, self._headers_of(index, record))
            except SampleError as error:
                bad[index] = error.bad_record()
            except Exception as error:
                raise unexpected("measuring", [record], error) from error
            else:
                self._known[index] = size.prompt, sum(size.responses), size.patches
        good = [index for index in indices if index not in bad]
        refused = [(at, bad[index]) for at, index in enumerate(indices) if index in bad]
        return good, [self._size(index) for index in good], refused

    def _look_at(self, paths: list[str]) -> None:
        with ThreadPoolExecutor(PROBE_THREADS, thread_name_prefix="headers") as pool:
            for chunk in self._until_stopped([paths[at : at + CHUNK] for at in range(0, len(paths), CHUNK)]):
                if not self._headers.look_at(chunk, pool):
                    sleep(SECOND_LOOK_S)
                    self._headers.look_at(chunk, pool)

    def _headers_of(self, index: int, record: Record) -> Known:
        if not isinstance(self.records, Records):
            return self._headers
        return dict(zip(record.images, self.records.headers(index), strict=True))

    def _size(self, index: int) -> GroupSize:
        prompt, response, patches = self._known[index].tolist()
        return GroupSize(prompt, (response,) if self.with_response else (), patches, patch=self.planning.patch)

    def _until_stopped(self, items: Iterable[T]) -> Iterator[T]:
        for item in items:
            if self.stop.is_set():
                raise CancelledError
            yield item
