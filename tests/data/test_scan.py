"""The scan counts what is bad, stops only above the bound, and says what to do."""

import json
import re

import pytest

from univg_fast.data.images import Header
from univg_fast.data.scan import require, scan, write_report


def mixed(folder):
    return folder.jsonl(
        folder.stage2(task="one"),
        folder.stage2(answer=[5, 5, 5, 9]),
        folder.stage2(task="two"),
        "{",
        folder.stage2(task="one"),
    )


def test_counts_below_the_bound(folder):
    path = mixed(folder)
    records, report = scan([path])
    assert [record.source for record in records] == [f"{path}:{line}" for line in (1, 3, 5)]
    assert report.kinds == {"box": 1, "json": 1} and report.tasks == {"one": 2, "two": 1}
    assert report.bad_fraction == 0.4 and report.files == {str(path): 5}
    assert report.summary() == "3 records of 2 tasks from 1 files, 2 bad records skipped (box 1, json 1)"
    assert scan([path]) == (records, report)


def test_above_the_bound_it_stops_with_counts_places_and_the_key(folder):
    path = mixed(folder)
    with pytest.raises(ValueError) as caught:
        require(scan([path])[1], 0.39)
    message = str(caught.value)
    assert f"2 of 5 records in {path} are bad (40.0%, more than data.max_bad_fraction=0.39)" in message
    assert re.search(r"box: 1\n +json: 1", message)
    assert f"{path}:2: answer: expected x1 < x2" in message and f"{path}:4: not JSON" in message


def test_many_bad_records_are_quoted_in_part(folder):
    path = folder.jsonl(*["{"] * 20)
    with pytest.raises(ValueError, match="and 15 more"):
        require(scan([path])[1], 0.01)


def test_no_good_record_stops_whatever_the_bound(folder):
    with pytest.raises(ValueError, match="no good one is left"):
        require(scan([folder.jsonl("{")])[1], 1.0)
    with pytest.raises(ValueError, match="no good one is left"):
        require(scan([folder.write("empty.jsonl", "")])[1], 0.01)


def test_several_files_keep_their_order(folder):
    first = folder.jsonl(folder.stage2()).rename(folder.path / "first.jsonl")
    second = folder.jsonl(folder.stage2(), folder.stage2())
    records, report = scan([second, first])
    assert [record.source for record in records] == [f"{second}:1", f"{second}:2", f"{first}:1"]
    assert list(report.files.items()) == [(str(second), 2), (str(first), 1)]


def test_the_written_report(folder, tmp_path):
    path = mixed(folder)
    _, report = scan([path])
    write_report(tmp_path / "data_report.json", {"grpo": report})
    content = json.loads((tmp_path / "data_report.json").read_text())["grpo"]
    assert content["good"] == 3 and content["kinds"] == {"box": 1, "json": 1}
    assert content["bad"][1]["source"] == f"{path}:4" and content["bad_fraction"] == 0.4


def test_a_record_without_what_its_stage_needs_is_bad(folder):
    path = folder.jsonl(folder.stage2(), folder.stage2())
    records, report = scan([path], needs="response")
    assert not records and report.kinds == {"schema": 2}
    assert f"{path}:2: expected a response" in report.bad[1].message


def test_records_on_one_line_and_files_of_one_name_have_ids_of_their_own(folder):
    rows = [folder.stage2() for _ in range(3)]
    path = folder.write("rows.json", json.dumps(rows))
    records, _ = scan([path, path])
    assert len({record.uid for record in records}) == 6
    assert [record.source for record in records[:3]] == [f"{path}:1[{i}]" for i in range(3)]


def test_a_record_is_parsed_again_without_a_look_at_its_images(folder):
    """Boxes in pixels need their sizes: each rank would open the images of each epoch's records again."""
    path = folder.jsonl(folder.stage2(answer=[0, 0, 30, 20], target_image=1))
    records, _ = scan([{"path": str(path), "coordinates": "pixel"}])
    (folder.path / "b.png").unlink()
    assert records[0].box == (0, 0, 500, 500) and records.headers(0) == [Header((60, 40))] * 2
