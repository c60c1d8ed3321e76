"""Batches as a pure function of (seed, step): nothing to save but the step, one order for all ranks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock

from univg_fast.structs import BadRecord, Record, Sample

from .errors import SampleError
from .mix import Mix, mix_of
from .samples import Processor, make_sample


def batch_indices(mix: Mix | int, batch_size: int, seed: int, step: int) -> list[int]:
    """Record indices of a step's global batch: the epochs' orders, end to end, cut into batches."""
    mix = Mix((mix,), (1.0,)) if isinstance(mix, int) else mix
    first = step * batch_size
    places = (divmod(at, mix.epoch) for at in range(first, first + batch_size))
    return [int(mix.order(seed, epoch)[at]) for epoch, at in places]


class SampleLoader:
    """Makes this rank's samples of a step, and those of the next steps ahead of time in threads.

    `batch_size` counts records over all ranks; rank r takes records r, r + world_size, ... of each batch. The
    decoded samples used last are kept, up to `cache_bytes`. Memory besides: (prefetch + 1) batches.
    """

    def __init__(
        self,
        records: Sequence[Record],
        processor: Processor,
        batch_size: int,
        *,
        seed: int,
        with_response: bool,
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
        self.seed, self.with_response, self.rank, self.world_size = seed, with_response, rank, world_size
        self.mix, self.prefetch = mix_of(records), prefetch
        self._pool = ThreadPoolExecutor(max(1, num_workers), thread_name_prefix="samples")
        self._pending: dict[int, list[Future[Sample | BadRecord]]] = {}
        self._cache = _Cache(cache_bytes)

    def indices(self, step: int) -> list[int]:
        """This rank's record indices of a step."""
        return batch_indices(self.mix, self.batch_size, self.seed, step)[self.rank :: self.world_size]

    def batch(self, step: int) -> tuple[list[Sample], list[BadRecord]]:
        """This rank's samples of a step, and the records that gave none."""
        ahead = range(step, step + self.prefetch + 1)
        for other in [other for other in self._pending if other not in ahead]:
            for future in self._pending.pop(other):
                future.cancel()
        for other in ahead:
            if other not in self._pending:
                self._pending[other] = [self._pool.submit(self._make, index) for index in self.indices(other)]
        made = [future.result() for future in self._pending.pop(step)]
        return [m for m in made if isinstance(m, Sample)], [m for m in made if isinstance(m, BadRecord)]

    def __enter__(self) -> SampleLoader:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the threads; what was prefetched is dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _make(self, index: int) -> Sample | BadRecord:
        sample = self._cache.get(index)
        if sample is not None:
            return sample
        try:
            sample = make_sample(self.records[index], self.processor, self.with_response)
        except SampleError as error:
            return error.bad_record()
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
