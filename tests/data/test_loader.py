"""A batch is a function of (seed, step) alone: not of ranks, earlier batches, threads or the cache."""

from dataclasses import replace

import numpy as np
import pytest

from univg_fast.data.loader import SampleLoader, _bytes, _Cache, batch_indices
from univg_fast.data.records import read_records
from univg_fast.data.samples import make_sample


def loader_of(records, processor, **changes):
    options = {"seed": 5, "with_response": True} | changes
    return SampleLoader(records, processor, options.pop("batch_size", 8), **options)


def uids(samples):
    return [sample.record.uid for sample in samples]


def test_every_epoch_is_a_permutation_and_epochs_differ():
    number, size = 10, 4
    drawn = [i for step in range(5) for i in batch_indices(number, size, 1, step)]
    first, second = drawn[:10], drawn[10:]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second and first != list(range(10))
    assert batch_indices(number, size, 1, 3) != batch_indices(number, size, 2, 3)


def test_a_batch_larger_than_the_data():
    assert sorted(batch_indices(3, 6, 0, 0)) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_together_give_the_batch_of_one_rank(records, processor, world_size):
    alone = loader_of(records, processor)
    ranks = [loader_of(records, processor, rank=r, world_size=world_size) for r in range(world_size)]
    for step in (0, 1, 9):
        expected = uids(alone.batch(step)[0])
        shares = [uids(rank.batch(step)[0]) for rank in ranks]
        assert [shares[i % world_size][i // world_size] for i in range(8)] == expected
    for loader in (alone, *ranks):
        loader.close()


def test_resume_needs_the_step_only(records, processor):
    through = loader_of(records, processor)
    steps = [through.batch(step)[0] for step in range(12)]
    resumed = loader_of(records, processor, prefetch=0, num_workers=3, cache_bytes=0)
    for step in (7, 8, 9, 3):
        for one, other in zip(steps[step], resumed.batch(step)[0], strict=True):
            assert one.record == other.record
            assert np.array_equal(one.prompt_ids, other.prompt_ids)
            assert np.array_equal(one.response_ids, other.response_ids)
            assert np.array_equal(one.pixel_values, other.pixel_values)
    through.close()
    resumed.close()


def test_a_sample_that_fails_is_skipped_and_reported(folder, processor):
    records, _ = read_records(folder.jsonl(*[folder.stage2(id=str(i)) for i in range(4)]))
    whole = (folder.path / "b.png").read_bytes()
    folder.write("c.png", whole[: len(whole) // 2])
    records[2] = replace(records[2], images=(records[2].images[0], str(folder.path / "c.png")))
    loader = loader_of(records, processor, batch_size=4, with_response=False)
    for step in (0, 1):  # again in the next epoch
        samples, bad = loader.batch(step)
        assert sorted(uids(samples)) == ["0", "1", "3"]
        assert [(entry.kind, entry.source) for entry in bad] == [("decode", records[2].source)]
        assert bad[0].message.startswith(f"{records[2].source}: cannot decode the image {folder.path / 'c.png'}")
    loader.close()


def test_an_unexpected_error_reaches_the_caller(records, processor):
    loader = loader_of(records, replace(processor, tokenizer=None))
    with pytest.raises(TypeError):
        loader.batch(0)
    loader.close()


def test_the_cache_keeps_the_last_samples_within_its_bytes(records, processor, monkeypatch):
    import univg_fast.data.loader as module

    made = []

    def counting(record, *rest):
        made.append(record.uid)
        return original(record, *rest)

    original = module.make_sample
    monkeypatch.setattr(module, "make_sample", counting)
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


def test_refusals(records, processor):
    with pytest.raises(ValueError, match="no record to train on"):
        loader_of([], processor)
    with pytest.raises(ValueError, match="leaves some of the 9 ranks"):
        loader_of(records, processor, world_size=9)
