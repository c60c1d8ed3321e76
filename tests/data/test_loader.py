"""What a rank gets in a step is a function of (seed, step) alone: not of earlier steps, threads or the cache."""

import threading
from collections import Counter
from concurrent.futures import CancelledError
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from univg_fast.data.errors import Refused
from univg_fast.data.loader import SampleLoader, _bytes, _Cache
from univg_fast.data.mix import Mix, turn
from univg_fast.data.records import read_records
from univg_fast.data.samples import make_sample
from univg_fast.data.windows import Planning, cut, deal_parts, places, window_steps
from univg_fast.packing.plan import deal
from univg_fast.train.choice import Facts, choose

ROWS = Planning(budget=200, window=24)


def loader_of(records, processor, **changes):
    options = {"seed": 5, "with_response": True} | changes
    return SampleLoader(records, processor, options.pop("batch_size", 8), **options)


def uids(samples):
    return [sample.record.uid for sample in samples]


def rows(batch):
    return [uids(row.samples) for row in batch.rows]


def test_every_epoch_is_a_permutation_and_epochs_differ():
    drawn = places(Mix((10,), (1.0,)), 1, 0, 20)
    first, second = drawn[:10], drawn[10:]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second and first != list(range(10))
    assert drawn != places(Mix((10,), (1.0,)), 2, 0, 20)


def test_a_window_is_whole_steps_of_at_most_an_epoch():
    assert window_steps(512, 24, 10_000) == 21  # 504 samples
    assert window_steps(512, 24, 100) == 4
    assert window_steps(512, 600, 10_000) == window_steps(0, 8, 100) == window_steps(16, 24, 5) == 1


@pytest.mark.parametrize("planning", [Planning(), Planning(budget=300), ROWS])
@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_together_have_the_step_of_one_rank(records, processor, world_size, planning):
    alone = loader_of(records, processor, planning=planning)
    ranks = [loader_of(records, processor, rank=r, world_size=world_size, planning=planning) for r in range(world_size)]
    for step in (0, 1, 9):
        expected = alone.batch(step)
        shares = [rank.batch(step) for rank in ranks]
        assert sorted(uid for share in shares for uid in uids(share.samples)) == sorted(uids(expected.samples))
        assert len({share.digest for share in shares}) == 1 and all(share.samples for share in shares)
        assert [share.passes for share in shares] == [max(len(share.rows) for share in shares)] * world_size
    for loader in (alone, *ranks):
        loader.close()


@settings(deadline=None)
@given(st.lists(st.floats(1, 5000), min_size=1, max_size=70), st.integers(1, 9), st.integers(1, 9), st.randoms())
def test_ranks_get_like_shares_of_each_part(costs, parts, ranks, random):
    order = random.sample(range(len(costs)), len(costs))
    held = cut(order, parts)
    hands = deal_parts(costs, held, ranks)
    assert sorted(i for hand in hands for i in hand) == list(range(len(costs)))
    for part in held:
        assert max(len(set(part) & set(hand)) for hand in hands) <= -(-len(part) // ranks)
    assert all(hands) or len(costs) < ranks
    if parts == 1:
        assert sorted(hands) == sorted(deal(costs, ranks))


def test_updates_of_a_rollout_are_shared_out_evenly_over_any_ranks(records, processor):
    """24 prompts for 3 updates, all but a few of which ranks have the same number of, and which hang on no rank."""
    found = {}
    for world_size in (1, 2, 4):
        options = {"batch_size": 24, "with_response": False, "planning": Planning(parts=3), "world_size": world_size}
        ranks = [loader_of(records, processor, rank=r, **options) for r in range(world_size)]
        batches = [rank.batch(1) for rank in ranks]
        facts = [
            [
                Facts((turn(5, 1, s.record.uid, n), s.record.source), True, 1, 1, (0.0,), 1.0)
                for s, n in zip(batch.samples, batch.repeats, strict=True)
            ]
            for batch in batches
        ]
        chosen = [choose(facts, rank, 3, None) for rank in range(world_size)]
        for update in range(3):
            assert [len(choice.shares[update].groups) for choice in chosen] == [8 // world_size] * world_size
        found[world_size] = [
            sorted(fact.place for mine, choice in zip(facts, chosen, strict=True)
                   for fact in map(mine.__getitem__, choice.shares[update].groups))
            for update in range(3)
        ]  # fmt: skip
        for rank in ranks:
            rank.close()
    assert found[1] == found[2] == found[4]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_repeats_of_a_record_are_counted_over_all_ranks(folder, processor, world_size):
    """Its completions then differ, wherever they are sampled. 8 of 3 records: each comes two or three times."""
    records, _ = read_records(folder.jsonl(*[folder.stage2(id=str(i)) for i in range(3)]))
    ranks = [
        loader_of(records, processor, with_response=False, rank=r, world_size=world_size) for r in range(world_size)
    ]
    batches = [rank.batch(0) for rank in ranks]
    found = [(uid, n) for batch in batches for uid, n in zip(uids(batch.samples), batch.repeats, strict=True)]
    counts = Counter(uid for uid, _ in found)
    assert sorted(counts.values()) == [2, 3, 3]
    assert sorted(found) == [(uid, n) for uid in sorted(counts) for n in range(counts[uid])]
    for rank in ranks:
        rank.close()


def test_a_window_has_every_record_once_in_rows_within_the_budget(records, processor):
    """60 records of an epoch are 2 windows of 3 steps of 8 and a bit; rows are full, and steps near equal."""
    with loader_of(records, processor, planning=ROWS, num_steps=7) as loader:
        steps = [loader.batch(step) for step in range(7)]
    lengths = [sum(len(s.prompt_ids) + len(s.response_ids) for s in r.samples) for batch in steps for r in batch.rows]
    assert max(lengths) <= 200
    counts = Counter(uid for batch in steps for uid in uids(batch.samples))
    assert sum(counts.values()) == 56 and set(counts.values()) == {1}
    assert [sum(len(batch.samples) for batch in steps[i : i + 3]) for i in (0, 3, 6)] == [24, 24, 8]
    assert all(4 <= len(batch.samples) <= 12 for batch in steps)
    with loader_of(records, processor, planning=replace(ROWS, window=0)) as loader:
        off = [sum(len(b.rows) for b in map(loader.batch, range(i, i + 3))) for i in (0, 3)]
    assert [sum(len(batch.rows) for batch in steps[i : i + 3]) for i in (0, 3)] < off
    with loader_of(records, processor, planning=ROWS) as loader:  # the stage goes on: the last window is whole
        assert len(loader.windows.indices(2)) == 24


def test_a_step_without_a_window_has_the_records_in_order(records, processor):
    with loader_of(records, processor, planning=Planning(budget=10_000)) as loader:
        expected = places(loader.windows.mix, 5, 16, 24)
        assert rows(loader.batch(2)) == [[records[i].uid for i in expected]]


def test_windows_are_measured_as_they_come(records, processor, monkeypatch):
    """A million records are not looked at before the first step."""
    import univg_fast.data.windows as module

    measured = []

    def counting(record, *rest):
        measured.append((record.uid, threading.current_thread().name))
        return original(record, *rest)

    original = module.measure
    monkeypatch.setattr(module, "measure", counting)
    with loader_of(records, processor, planning=Planning(200, 16), prefetch=0) as loader:
        for step in range(4):
            loader.batch(step)
            loader.share(step + 2)  # waits for the window ahead
            assert len(measured) <= 16 * (step // 2 + 3) <= 80
    assert {name.rpartition("_")[0] for _, name in measured} == {"plans"}


def test_closing_does_not_wait_for_a_plan(records, processor, monkeypatch):
    """A large window takes minutes; after a failure nobody needs it any more."""
    import univg_fast.data.windows as module

    measured, second = [], threading.Event()

    def counting(record, *rest):
        measured.append(record)
        if len(measured) == 2:
            second.set()
            assert loader.windows.stop.wait(20)
        return original(record, *rest)

    original = module.measure
    monkeypatch.setattr(module, "measure", counting)
    loader = loader_of(records, processor, planning=ROWS)
    plan = loader._planner.submit(loader.windows.plan, 0, 0)
    assert second.wait(20)
    loader.close()
    assert len(measured) == 2 and isinstance(plan.exception(), CancelledError)


def test_rows_are_built_in_threads_from_their_samples(records, processor):
    here = threading.current_thread().name

    def build(samples):
        return threading.current_thread().name, uids(samples)

    with loader_of(records, processor, planning=ROWS, build=build) as loader:
        batch = loader.batch(4)
    assert len(batch.rows) > 1
    for row in batch.rows:
        assert row.built[0] != here and row.built[1] == uids(row.samples)


def test_resume_needs_the_step_only(records, processor):
    """In the middle of a window, too: 9 steps are 3 windows."""
    through = loader_of(records, processor, planning=ROWS)
    steps = [through.batch(step) for step in range(12)]
    resumed = loader_of(records, processor, planning=ROWS, prefetch=0, num_workers=3, cache_bytes=0)
    for step in (7, 8, 9, 3):
        other = resumed.batch(step)
        assert rows(steps[step]) == rows(other) and steps[step].digest == other.digest
        for one, two in zip(steps[step].samples, other.samples, strict=True):
            assert one.record == two.record
            assert np.array_equal(one.prompt_ids, two.prompt_ids)
            assert np.array_equal(one.response_ids, two.response_ids)
            assert np.array_equal(one.pixel_values, two.pixel_values)
    through.close()
    resumed.close()


def test_a_sample_that_fails_is_skipped_and_reported(folder, processor):
    records, _ = read_records(folder.jsonl(*[folder.stage2(id=str(i)) for i in range(4)]))
    whole = (folder.path / "b.png").read_bytes()
    folder.write("c.png", whole[: len(whole) // 2])
    records[2] = replace(records[2], images=(records[2].images[0], str(folder.path / "c.png")))
    loader = loader_of(records, processor, batch_size=4, with_response=False)
    for step in (0, 1):  # again in the next epoch
        batch = loader.batch(step)
        assert sorted(uids(batch.samples)) == ["0", "1", "3"]
        assert len(batch.repeats) == 3
        assert [(entry.kind, entry.source) for entry in batch.bad] == [("decode", records[2].source)]
        message = f"{records[2].source} (2): cannot decode the image {folder.path / 'c.png'}"
        assert batch.bad[0].message.startswith(message) and batch.bad[0].uid == "2"
    loader.close()


@pytest.mark.parametrize("world_size", [1, 3])
def test_what_the_headers_refuse_is_left_out_and_told_by_one_rank(folder, processor, world_size):
    records, _ = read_records(folder.jsonl(*[folder.stage1(id=str(i)) for i in range(16)]))
    records[2] = replace(records[2], images=(records[2].images[0], str(folder.path / "gone.png")))
    records[9] = replace(records[9], question="<|image_pad|>")
    planning = Planning(budget=400, window=16)
    ranks = [loader_of(records, processor, planning=planning, rank=r, world_size=world_size) for r in range(world_size)]
    batches = [rank.batch(step) for step in (0, 1) for rank in ranks]
    told = sorted((entry.kind, entry.source) for batch in batches for entry in batch.bad)
    assert told == [("count", records[9].source), ("missing", records[2].source)]
    assert sorted(int(uid) for batch in batches for uid in uids(batch.samples)) == [
        *range(2),
        *range(3, 9),
        *range(10, 16),
    ]
    for rank in ranks:
        rank.close()


def test_a_header_that_fails_once_changes_no_plan(folder, processor, monkeypatch):
    """As on a network disk, on one rank: it looks again, and both ranks plan the same."""
    import univg_fast.data.images as module

    records, _ = read_records(folder.jsonl(*[folder.stage1(id=str(i)) for i in range(8)]))
    planning, original, failures = Planning(budget=400, window=8), module.probe, iter(["stale"])
    with loader_of(records, processor, planning=planning, world_size=2) as well:
        expected = well.share(0)
        monkeypatch.setattr(module, "probe", lambda p: Refused("decode", p) if next(failures, "") else original(p))
        with loader_of(records, processor, planning=planning, world_size=2, rank=1) as ill:
            found = ill.share(0)
        assert next(failures, "none left") == "none left" and found.digest == expected.digest and not found.refused
        failures = iter(["stale"] * 4)  # two looks at both images: now the plans differ, and this rank can say why
        with loader_of(records, processor, planning=planning, world_size=2, rank=1) as ill:
            found = ill.share(0)
            assert found.digest != expected.digest
            assert sorted(entry.source for entry in found.refused) == sorted(record.source for record in records)
            assert ill.batch(1).refused == []  # the next window looks again


def test_a_row_of_bad_samples_only_builds_nothing(folder, processor):
    folder.write("c.png", (folder.path / "b.png").read_bytes()[:60])
    records, _ = read_records(folder.jsonl(folder.stage1(images=["a.png", "c.png"])))
    with loader_of(records, processor, batch_size=1, planning=ROWS, build=len) as loader:
        batch = loader.batch(0)
    assert [row.built for row in batch.rows] == [None] and [entry.kind for entry in batch.bad] == ["decode"]
    assert batch.samples == [] and batch.passes == 1


def test_an_unexpected_error_reaches_the_caller_with_the_records_that_caused_it(records, processor, monkeypatch):
    import univg_fast.data.loader as module

    first = places(Mix((60,), (1.0,)), 5, 0, 8)[0]
    with (
        loader_of(records, replace(processor, tokenizer=None)) as loader,
        pytest.raises(RuntimeError, match=rf"^measuring of {records[first].source} .*: TypeError: 'NoneType' object"),
    ):
        loader.batch(0)

    def broken(samples):
        raise KeyError("boom")

    with loader_of(records[:2], processor, batch_size=2, build=broken) as loader:
        expected = rf"^building a row of .*{records[0].source}.*: KeyError: 'boom'"
        with pytest.raises(RuntimeError, match=expected) as caught:
            loader.batch(0)
        assert records[1].source in str(caught.value) and isinstance(caught.value.__cause__, KeyError)
    monkeypatch.setattr(module, "make_sample", lambda record, *rest: broken([]))
    with (
        loader_of(records[:1], processor, batch_size=1) as loader,
        pytest.raises(RuntimeError, match=rf"^making a sample of {records[0].source} .*: KeyError: 'boom'"),
    ):
        loader.batch(0)


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
    import univg_fast.data.windows as module

    measured = []

    def counting(record, *rest):
        measured.append(record.uid)
        return original(record, *rest)

    original = module.measure
    monkeypatch.setattr(module, "measure", counting)
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
