"""What a loader holds: pixels once, sizes once a run, the last samples within their bytes."""

from collections import Counter
from dataclasses import replace

import univg_fast.data.loader as loader_module
from univg_fast.data import windows
from univg_fast.data.loader import _bytes, _Cache
from univg_fast.data.samples import make_sample
from univg_fast.data.windows import Planning

from .loaders import ROWS, counted, loader_of, uids


def test_pixels_are_held_once(records, processor):
    """A row's own copy is there; what its samples hold is not kept beside it, nor behind a view."""
    with loader_of(records, processor, planning=ROWS, build=lambda s: [x.pixel_values.copy() for x in s]) as loader:
        batch = loader.batch(0)
    for row in batch.rows:
        assert all(pixels.nbytes for pixels in row.built)
        for sample in row.samples:
            assert sample.pixel_values.nbytes == 0 and sample.pixel_values.base is None


def test_lengths_are_measured_once_a_run(records, processor, monkeypatch):
    """Every rank measures what all of them get: in the next epoch it knows. What was refused is looked at again."""
    measured, original = counted(monkeypatch, windows, "measure")
    few = [*records[:7], replace(records[7], images=("/nowhere.png",))]
    with loader_of(few, processor, planning=Planning(budget=200), prefetch=0) as loader:
        first = loader.batch(0)
        for epoch in (1, 2):
            again = loader.batch(epoch)
            assert sorted(uids(again.samples)) == sorted(uids(first.samples))
            assert [entry.kind for entry in again.bad] == ["missing"]
        assert loader.windows._size(3) == original(few[3], processor, True, loader.windows._headers)
    counts = Counter(measured)
    assert {counts.pop(few[7].uid)} <= {3, 4} and len(counts) == 7 and set(counts.values()) == {1}


def test_the_cache_keeps_the_last_samples_within_its_bytes(records, processor, monkeypatch):
    made, _ = counted(monkeypatch, loader_module, "make_sample")
    few = records[:8]
    generous = loader_of(few, processor, prefetch=0)
    for step in range(3):
        generous.batch(step)
    assert len(made) == 8
    assert 0 < generous._cache.size <= generous._cache.limit
    made.clear()
    without = loader_of(few, processor, prefetch=0, cache_bytes=0)
    for step in range(3):
        without.batch(step)
    assert len(made) == 24 and without._cache.size == 0
    generous.close()
    without.close()


def test_the_cache_drops_what_was_not_used_for_longest(records, processor):
    samples = [make_sample(record, processor, with_response=False) for record in records[:2]]
    samples.append(samples[1])
    cache = _Cache(sum(_bytes(sample) for sample in samples[:2]))
    cache.put(0, samples[0])
    cache.put(1, samples[1])
    cache.get(0)
    cache.put(2, samples[2])
    assert cache.get(1) is None and cache.get(0) is samples[0] and cache.get(2) is samples[2]
