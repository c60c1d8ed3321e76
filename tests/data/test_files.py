"""Data entries: LLaMA-Factory's dataset_info.json, parquet with images inside, weights; and records by their places."""

import gc
import hashlib
import json
import pickle
import tracemalloc
from collections import Counter

import numpy as np
import pytest

from univg_fast.data.index import Records
from univg_fast.data.mix import Mix
from univg_fast.data.prompts import prompt_text
from univg_fast.data.scan import CHUNK, scan
from univg_fast.data.windows import places

from .examples import THINK, turns

BOX = (0, 0, 500, 250)


@pytest.fixture
def info(folder):
    """A dataset_info.json of three data sets whose columns have other names."""
    said = turns("<image>Where?", THINK, keys=("role", "content"), names=("user", "assistant"))
    rows = {
        "plain.json": [{"conversations": turns("<image>Where?", THINK), "images": ["a.png"]}],
        "tagged.json": [{"messages": said, "pictures": ["b.png"], "id": "tagged"}],
        "alpaca.jsonl": [{"ask": "<image>Where?", "say": "(0,0),(500,250)", "images": ["a.png"]}],
    }
    for name, content in rows.items():
        lines = name.endswith("l")
        folder.write(name, "\n".join(map(json.dumps, content)) if lines else json.dumps(content))
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    content = {
        "plain": {"file_name": "plain.json", "formatting": "sharegpt", "columns": {"images": "images"}},
        "tagged": {"file_name": "tagged.json", "formatting": "sharegpt", "tags": tags,
                   "columns": {"messages": "messages", "images": "pictures"}},
        "alpaca": {"file_name": "alpaca.jsonl", "columns": {"prompt": "ask", "response": "say", "images": "images"}},
    }  # fmt: skip
    return folder.write("dataset_info.json", json.dumps(content))


def test_dataset_info_names_files_and_columns(info):
    records, report = scan([info])
    assert not report.bad and [record.box for record in records] == [BOX] * 3
    assert list(report.files) == [str(info.parent / name) for name in ("plain.json", "tagged.json", "alpaca.jsonl")]
    chosen, _ = scan([f"{info}#tagged,plain"])
    assert [record.uid for record in chosen] == ["tagged", "plain:1"] and chosen[0].question == "Where?"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"file_name": "gone.json"}, "plain: no such file: .*gone.json"),
        ({"file_name": None, "hf_hub_url": "someone/something"}, "hubs and scripts are not asked"),
        ({"formatting": "openai"}, "formatting: expected alpaca or sharegpt, got 'openai'"),
    ],
)
def test_dataset_info_that_cannot_be_followed(info, change, message):
    content = json.loads(info.read_text())
    content["plain"] |= change
    info.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        scan([info])
    with pytest.raises(ValueError, match="expected some of plain, tagged, alpaca, got other"):
        scan([f"{info}#other"])


def test_entries_with_settings_of_their_own(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "data.jsonl"
    elsewhere.write_text(json.dumps(folder.stage2(answer=[0, 0, 30, 10])))
    entry = {"path": str(elsewhere), "image_root": str(folder.path), "coordinates": "pixel", "answer_style": "bbox_2d"}
    (record,), report = scan([entry])
    assert not report.bad and record.box == BOX and record.answer_style == "bbox_2d"


def test_an_entry_asks_for_reasoning_where_its_answers_have_none(folder, tmp_path_factory):
    """VLM-R1's files hold bare boxes, its trainer asks for reasoning: stage 2 may; stage 1 cannot learn it."""
    said = turns("<image>Where?", '[{"bbox_2d": [0, 0, 30, 10]}]')
    path = folder.write("vlm_r1.jsonl", json.dumps({"image": "a.png", "conversations": said}))
    (plain,), _ = scan([str(path)], needs="box")
    (asked,), report = scan([{"path": str(path), "cot": True}], needs="box")
    assert not report.bad and asked.box == plain.box == BOX and (plain.cot, asked.cot) == (False, True)
    assert "<think>" in prompt_text(asked) and "<think>" not in prompt_text(plain)
    records, report = scan([{"path": str(path), "cot": True}], needs="response")
    assert len(records) == 0 and "no <think>" in report.bad[0].message


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"weight": 2}, "path is required"),
        ({"path": "a", "wieght": 2}, "expected a path or a mapping of path, weight"),
        ({"path": "a", "weight": 0}, "weight: expected a number above 0"),
        ({"path": "a", "weight": float("nan")}, "weight: expected a number above 0"),
        ({"path": "a", "coordinates": "polar"}, "coordinates: expected one of norm1, norm1000, pixel, resized"),
        ({"path": "a", "cot": "yes"}, "cot: expected true or false, got 'yes'"),
        ({"path": "a", "answer_style": "xml"}, "answer_style: expected one of univg_r1, bbox_2d, box_tokens"),
    ],
)
def test_entries_that_are_none(entry, message):
    with pytest.raises(ValueError, match=message):
        scan([entry])


def test_the_weights_of_files_in_an_epoch():
    mix = Mix((10, 8, 0, 5), (1.0, 0.5, 3.0, 2.0))
    assert mix.shares == (10, 4, 0, 10) and mix.epoch == 24
    epochs = [mix.order(7, epoch) for epoch in range(4)]
    for order in epochs:
        counts = Counter(order.tolist())
        assert all(counts[i] == 1 for i in range(10)) and all(counts[i] == 2 for i in range(18, 23))
        assert len(order) == 24
    halves = [{i for i in order.tolist() if 10 <= i < 18} for order in epochs]
    assert all(len(half) == 4 for half in halves)
    assert halves[0] | halves[1] == halves[2] | halves[3] == set(range(10, 18)), "two epochs take all of the file"
    assert not np.array_equal(epochs[0], mix.order(8, 0))
    assert Mix((3, 4), (1.0, 1.0)).order(1, 2).tolist() == np.random.default_rng([1, 2]).permutation(7).tolist()


def test_batches_of_a_mix_are_a_function_of_the_step():
    mix = Mix((6, 6), (1.0, 0.5))
    steps = [places(mix, 3, 4 * step, 4 * step + 4) for step in range(9)]
    drawn = [i for batch in steps for i in batch]
    assert drawn == [i for epoch in range(4) for i in mix.order(3, epoch).tolist()]
    assert places(mix, 3, 28, 32) == steps[7]


def test_the_records_of_a_scan_carry_their_files_weights(folder):
    rows = [json.dumps(folder.stage2(id=str(i))) + "\n" for i in range(6)]
    one, two = folder.write("one.jsonl", "".join(rows[:4])), folder.write("two.jsonl", "".join(rows[4:]))
    records, _ = scan([{"path": str(one), "weight": 0.5}, str(two)])
    assert records.mix == Mix((4, 2), (0.5, 1.0)) and records.mix.epoch == 4


@pytest.mark.parametrize("suffix", ["jsonl", "json", "one-line.json"])
def test_records_by_their_places(folder, suffix):
    """Any order, slices, from another process; lines with a BOM, empty lines, characters of several bytes."""
    rows = [folder.stage2(id=f"r{i}", question=f"<image><image>Où est n° {i}, 這是什麼 🐕?") for i in range(9)]
    if suffix == "jsonl":
        text = "\ufeff" + "\n\n".join(json.dumps(row, ensure_ascii=i % 2 == 0) for i, row in enumerate(rows))
    else:
        text = json.dumps(rows, ensure_ascii=False, indent=None if "one" in suffix else 1)
    path = folder.write(f"data.{suffix}", text)
    records, report = scan([path])
    assert not report.bad and [records[i].uid for i in range(8, -1, -1)] == [f"r{i}" for i in range(8, -1, -1)]
    assert [r.uid for r in records[2:-1:3]] == ["r2", "r5"] and records[-1].question == "Où est n° 8, 這是什麼 🐕?"
    assert len({record.source for record in records}) == 9
    there = pickle.loads(pickle.dumps(records))
    assert there == records and there.digest() == records.digest()
    with pytest.raises(IndexError):
        records[9]


def test_equal_ids_are_told_apart_over_files(folder):
    rows = [folder.stage2(id=name) for name in "xyxzx"]
    path = folder.jsonl(*rows)
    records, _ = scan([path, path])
    uids = [record.uid for record in records]
    assert uids[:5] == ["x", "y", "x@2", "z", "x@3"] and uids[5:] == ["x@4", "y@2", "x@5", "z@2", "x@6"]


def test_a_file_that_changed_since_the_scan(folder):
    path = folder.jsonl(*[folder.stage2(id=str(i)) for i in range(3)])
    records, _ = scan([path])
    path.write_text(path.read_text().replace("Where", "Whither"))
    with pytest.raises(ValueError, match=r"data.jsonl:2 is no longer what the scan read: the file has changed"):
        records[1]
    records, _ = scan([path])
    assert records[0].uid == "0"
    with path.open("r+b") as file:
        file.seek(records._offset[1])
        file.write(b"{]")
    with pytest.raises(ValueError, match="data.jsonl:2 is no longer what the scan read"):
        records[1]


def test_records_take_bytes_not_texts(folder):
    """Three times the records take no more memory at any time of the scan; what stays is their places and sizes."""
    line = json.dumps(folder.stage2(question="<image><image>" + "Where is it? " * 40)) + "\n"
    helds, peaks = [], []

    def note(*_):
        gc.collect()  # how much waits to be collected depends on all else in the process
        seen.append(tracemalloc.get_traced_memory()[0])

    for number in (2000, 6000):
        path = folder.write(f"{number}.jsonl", line * number)
        seen: list[int] = []
        tracemalloc.start()
        try:
            records, _ = scan([path], progress=note)
            note()
        finally:
            tracemalloc.stop()
        helds.append(seen[-1])
        peaks.append(max(seen))
        assert sum(places.itemsize * len(places) for places in records._places) == (32 + 2 * 9) * number + 4
    assert peaks[0] > CHUNK * len(line), "the rows under way are seen"
    assert helds[1] - helds[0] < 75 * 4000, "50 bytes each, and what arrays keep in reserve"
    assert peaks[1] - peaks[0] < 0.25 * 4000 * len(line), "of 4000 more texts"


def test_a_digest_tells_files_apart(folder):
    path = folder.jsonl(*[folder.stage2(id=str(i)) for i in range(3)])
    records, _ = scan([path])
    folder.jsonl(*[folder.stage2(id=str(i)) for i in range(4)])
    more, _ = scan([path])
    assert records.digest() != more.digest()
    assert isinstance(more, Records) and len(hashlib.new("sha256", more.digest().encode()).digest()) == 32
