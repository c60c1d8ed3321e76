"""How records become the shares of ranks: all of an epoch, alike and by cost, in rows within the budget."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from univg_fast.data.mix import Mix, turn
from univg_fast.data.records import read_records
from univg_fast.data.windows import Planning, cut, deal_parts, places, window_steps
from univg_fast.packing.plan import deal
from univg_fast.train.choice import Facts, choose

from .loaders import ROWS, loader_of, uids


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
                Facts((turn(5, 1, s.record.uid, n), s.record.source), True, 1, 1, (0.0,), 1.0, 1.0)
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
