"""A rank's samples and rows of each step, made in threads ahead of time; a pure function of (seed, step)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Generic, TypeVar

from univg_fast.packing.vision import without_pixels
from univg_fast.structs import BadRecord, Record, Sample

from .errors import SampleError, unexpected
from .samples import Processor, make_sample
from .windows import Planning, Share, Windows

Built = TypeVar("Built")
EACH_STEP = Planning()


@dataclass(frozen=True)
class LoadedRow(Generic[Built]):
    """Samples that go together, and what `build` made of them; None where each of them turned out bad.

    Pixels are held once: the samples have none where something was built of them.
    """

    samples: list[Sample]
    repeats: list[int]  # of each sample, how often its record came before in the step, on any rank
    built: Built | None
    bad: list[BadRecord]


@dataclass(frozen=True)
class Batch(Generic[Built]):
    """One rank's part of a step. `passes`: the largest number of rows planned for any rank."""

    rows: list[LoadedRow[Built]]
    bad: list[BadRecord]
    passes: int
    digest: int  # of the plan of all ranks
    refused: list[BadRecord]  # what this rank's plan left out, whichever rank tells it

    @property
    def samples(self) -> list[Sample]:
        return [sample for row in self.rows for sample in row.samples]

    @property
    def repeats(self) -> list[int]:
        """Of each sample, how often its record came before in the step, on any rank."""
        return [repeat for row in self.rows for repeat in row.repeats]


class SampleLoader(Generic[Built]):
    """Makes this rank's rows of a step, and those of the next steps ahead of time in threads.

    `batch_size` counts records over all ranks: of a step, or on average of the steps of a window. `build` turns the
    samples of a row into what a step needs, in a thread too. The decoded samples used last are kept, up to
    `cache_bytes`. Memory besides: (prefetch + 1) steps.
    """

    def __init__(
        self,
        records: Sequence[Record],
        processor: Processor,
        batch_size: int,
        *,
        seed: int,
        with_response: bool,
        planning: Planning = EACH_STEP,
        build: Callable[[list[Sample]], Built] | None = None,
        num_steps: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 1,
        prefetch: int = 2,
        cache_bytes: int = 256 << 20,
    ):
        if not records:
            raise ValueError("data: there is no record to train on; look at data_report.json for what was skipped")
        if batch_size < world_size:
            raise ValueError(
                f"a global batch of {batch_size} records leaves some of the {world_size} ranks without any"
            )
        self.records, self.processor, self.batch_size = records, processor, batch_size
        self.with_response, self.build, self.rank, self.prefetch = with_response, build, rank, prefetch
        self.windows = Windows(records, processor, batch_size, seed, with_response, world_size, planning, num_steps)
        self._planner = ThreadPoolExecutor(1, thread_name_prefix="plans")
        self._pool = ThreadPoolExecutor(max(1, num_workers), thread_name_prefix="samples")
        self._plans: dict[int, Future[list[Share]]] = {}
        self._pending: dict[int, tuple[Share, list[Future[LoadedRow[Built]]]]] = {}
        self._cache = _Cache(cache_bytes)

    def share(self, step: int) -> Share:
        """This rank's records of a step. The next window is planned meanwhile."""
        window, number = self.windows.place(step)
        for other in (window, window + 1):
            if other not in self._plans and not self._past_the_end(other * self.windows.steps):
                self._plans[other] = self._planner.submit(self.windows.plan, other, self.rank)
        return self._plans[window].result()[number]

    def _past_the_end(self, step: int) -> bool:
        return self.windows.num_steps is not None and step >= self.windows.num_steps

    def batch(self, step: int) -> Batch[Built]:
        """This rank's rows of a step, and the records that gave no sample."""
        ahead = [other for other in range(step, step + self.prefetch + 1) if not self._past_the_end(other)]
        windows = {self.windows.place(other)[0] for other in (*ahead, ahead[-1] + self.windows.steps)}
        for old in self._plans.keys() - windows:
            self._plans.pop(old).cancel()
        for old in self._pending.keys() - set(ahead):
            for future in self._pending.pop(old)[1]:
                future.cancel()
        for other in ahead:
            if other not in self._pending:
                share = self.share(other)
                self._pending[other] = (
                    share,
                    [self._submit(*row) for row in zip(share.rows, share.repeats, strict=True)],
                )
        share, futures = self._pending.pop(step)
        rows = [future.result() for future in futures]
        bad = [*share.bad, *(entry for row in rows for entry in row.bad)]
        return Batch(rows, bad, share.passes, share.digest, share.refused)

    def __enter__(self) -> SampleLoader[Built]:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the threads; what was prefetched is dropped, and a plan under way given up."""
        self.windows.stop.set()
        for pool in (self._planner, self._pool):
            pool.shutdown(wait=True, cancel_futures=True)

    def _submit(self, indices: list[int], repeats: list[int]) -> Future[LoadedRow[Built]]:
        """The samples' jobs stand before the row's in one queue, so that a row never waits for a job behind it."""
        made = [self._pool.submit(self._make, index) for index in indices]
        return self._pool.submit(self._row, made, repeats)

    def _row(self, futures: list[Future[Sample | BadRecord]], repeats: list[int]) -> LoadedRow[Built]:
        made = [future.result() for future in futures]
        samples = [m for m in made if isinstance(m, Sample)]
        kept = [repeat for repeat, m in zip(repeats, made, strict=True) if isinstance(m, Sample)]
        bad = [m for m in made if isinstance(m, BadRecord)]
        if self.build is None or not samples:
            return LoadedRow(samples, kept, None, bad)
        try:
            built = self.build(samples)
        except Exception as error:
            raise unexpected("building a row", [sample.record for sample in samples], error) from error
        return LoadedRow(without_pixels(samples), kept, built, bad)

    def _make(self, index: int) -> Sample | BadRecord:
        sample = self._cache.get(index)
        if sample is not None:
            return sample
        record = self.records[index]
        try:
            sample = make_sample(record, self.processor, self.with_response)
        except SampleError as error:
            return error.bad_record()
        except Exception as error:
            raise unexpected("making a sample", [record], error) from error
        self._cache.put(index, sample)
        return sample


class _Cache:
    """The samples used last, up to a number of bytes of pixels and tokens."""

    def __init__(self, limit: int):
        self.limit, self.size = limit, 0
        self._samples: OrderedDict[int, Sample] = OrderedDict()
        self._lock = Lock()

    def get(self, index: int) -> Sample | None:
        with self._lock:
            if index in self._samples:
                self._samples.move_to_end(index)
            return self._samples.get(index)

    def put(self, index: int, sample: Sample) -> None:
        with self._lock:
            if index in self._samples:
                return
            self._samples[index] = sample
            self.size += _bytes(sample)
            while self.size > self.limit and self._samples:
                self.size -= _bytes(self._samples.popitem(last=False)[1])


def _bytes(sample: Sample) -> int:
    return sample.pixel_values.nbytes + sample.prompt_ids.nbytes
