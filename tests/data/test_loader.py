"""What a rank gets in a step is a function of (seed, step) alone: not of earlier steps, threads or the cache."""

import threading
from concurrent.futures import CancelledError
from dataclasses import replace

import numpy as np
import pytest

from univg_fast.data.errors import Refused
from univg_fast.data.mix import Mix
from univg_fast.data.records import read_records
from univg_fast.data.windows import Planning, places

from .loaders import ROWS, loader_of, rows, uids


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
            assert loader.windows.stop.wait(200)
        return original(record, *rest)

    original = module.measure
    monkeypatch.setattr(module, "measure", counting)
    loader = loader_of(records, processor, planning=ROWS)
    plan = loader._planner.submit(loader.windows.plan, 0, 0)
    assert second.wait(200)
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


def test_refusals(records, processor):
    with pytest.raises(ValueError, match="no record to train on"):
        loader_of([], processor)
    with pytest.raises(ValueError, match="leaves some of the 9 ranks"):
        loader_of(records, processor, world_size=9)
