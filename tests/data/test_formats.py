"""Files made as each format's description says are recognised by content, understood, and come back without loss."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from univg_fast.data.__main__ import main
from univg_fast.data.convert import convert
from univg_fast.data.formats import FORMATS, recognise
from univg_fast.data.scan import scan

from .examples import ROWS

BOX = (0, 0, 500, 250)


@pytest.fixture
def disk(folder):
    (folder.path / "video").mkdir()
    for name in ("3.jpg", "1.jpg", "2.jpg"):
        Image.new("RGB", (60, 40)).save(folder.path / "video" / name)
    return folder


def records_of(folder, *rows):
    records, report = scan([folder.jsonl(*rows)])
    assert not report.bad, report.bad
    return list(records), report


def test_every_format_has_examples():
    assert set(ROWS) == set(FORMATS) - {"sharegpt"}


@pytest.mark.parametrize("name", ROWS)
def test_recognised_and_understood(disk, name):
    records, report = records_of(disk, *ROWS[name])
    assert {recognise(row) for row in ROWS[name]} == {name}
    (formats,) = report.formats.values()
    assert set(formats) == {name} and sum(formats.values()) == len(records)
    assert {record.box for record in records} == ({BOX, (100, 100, 200, 900)} if name == "mgrounding" else {BOX})
    assert all("<image>" not in record.question and "<bbox>" not in record.question for record in records)


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_there_and_back_without_loss(disk, name, suffix):
    rows = ROWS[name]
    source = disk.jsonl(*rows)
    own, back = disk.path / f"own.{suffix}", disk.path / f"back.{suffix}"
    assert convert(source, own, "univg_fast").bad == []
    assert convert(own, back, name).bad == []
    text = back.read_text()
    found = json.loads(text) if suffix == "json" else [json.loads(line) for line in text.splitlines()]
    if name == "univg_fast":  # what it does not know moves to extra
        rows = [{k: v for k, v in row.items() if k != "mine"} | {"extra": {"mine": row["mine"]}} for row in rows]
        found = [{k: v for k, v in row.items() if k != "coordinates"} for row in found]
    assert found == rows


@pytest.mark.parametrize("name", ROWS)
def test_our_own_format_gives_the_same_records(disk, name):
    records, _ = records_of(disk, *ROWS[name])
    convert(disk.path / "data.jsonl", disk.path / "own.jsonl", "univg_fast")
    again, report = scan([disk.path / "own.jsonl"])
    assert not report.bad

    def meaning(record):
        return {k: v for k, v in record.__dict__.items() if k not in ("uid", "source")}

    assert [meaning(r) for r in again] == [meaning(r) for r in records]


@pytest.mark.parametrize("to", ["univg_r1_stage2", "ms_swift", "easy_r1", "verl"])
@pytest.mark.parametrize("name", ["lisa", "revos", "mig_bench", "ms_swift", "easy_r1"])
def test_from_one_format_to_another(disk, name, to):
    """Boxes arrive as 0-1000 of their images, whatever they were before."""
    source, out = disk.jsonl(*ROWS[name]), disk.path / "out.jsonl"
    before, _ = scan([source])
    assert convert(source, out, to).bad == []
    after, report = scan([out])
    told = name if (name, to) == ("mig_bench", "univg_r1_stage2") else to  # its own keys come along, and are recognised
    assert [r.box for r in after] == [r.box for r in before] and set(*report.formats.values()) == {told}
    assert [r.question for r in after] == [r.question for r in before]


def test_what_a_format_cannot_hold_is_named(disk):
    source = disk.jsonl(*ROWS["univg_fast"], *ROWS["univg_r1_stage2"])
    done = convert(source, disk.path / "out.jsonl", "univg_r1_stage2")
    assert done.written == 2 and [bad.source for bad in done.bad] == [f"{source}:1"]
    assert "holds one box, and the record has 2" in done.bad[0].message
    with pytest.raises(ValueError, match=r"--to: expected one of univg_fast, .*, got 'coco'"):
        convert(source, disk.path / "out.jsonl", "coco")


def test_a_file_of_mixed_formats_is_read_row_by_row(disk):
    rows = [row for name in ROWS for row in ROWS[name]]
    records, report = records_of(disk, *rows)
    assert set(*report.formats.values()) == set(ROWS)
    assert len(records) == len(rows) + 1  # MGrounding's conversation answers with two boxes


def test_a_conversation_gives_a_record_for_each_answer_with_a_box(disk):
    (first, second), _ = records_of(disk, *ROWS["mgrounding"])
    path = disk.path / "data.jsonl"
    assert (first.uid, first.source, first.box, first.target_image) == ("m1.0", f"{path}:1#0", BOX, 1)
    assert (second.uid, second.source, second.target_image) == ("m1.2", f"{path}:1#2", None)
    assert second.question == "And where is it in the first image?" and second.images == first.images
    assert first.targets[0].label is None and first.answer_style == "box_tokens" and not first.cot


def test_images_of_later_turns_are_not_shown_before(disk):
    turns = ["<image>Where?", "(0,0),(500,250)", "<image>And here?", "(0,0),(500,250)"]
    said = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(turns)]
    (first, second), _ = records_of(disk, {"images": ["a.png", "b.png"], "conversations": said})
    assert len(first.images) == 1 and len(second.images) == 2


def test_mig_bench_names_the_image_that_holds_the_answer(disk):
    records, _ = records_of(disk, *ROWS["mig_bench"])
    assert [record.target_image for record in records] == [1, 0, 0]
    assert [record.task for record in records] == ["common_object", "group_grounding", "region"]
    assert records[0].extra == {"need_format": True, "additional_info": ""}


def test_ms_swift_fills_names_and_boxes_in(disk):
    (first, second), _ = records_of(disk, *ROWS["ms_swift"])
    filled = (
        "Find the <|object_ref_start|>dog<|object_ref_end|>; it is not <|box_start|>(500,0),(1000,1000)<|box_end|>."
    )
    assert first.question == filled and first.response == "<|box_start|>(0,0),(500,250)<|box_end|>"
    assert [t.image for t in first.targets] == [1] and second.response is None
    assert second.targets[0].label == "dog"


def test_columns_that_are_null_say_nothing(disk):
    """As a table of several formats has them."""
    row = ROWS["univg_r1_stage1"][0] | {"objects": None, "cot": None, "target_image": None}
    (record,), report = records_of(disk, row)
    assert set(*report.formats.values()) == {"univg_r1_stage1"} and record.box == BOX
    convert(disk.path / "data.jsonl", disk.path / "own.jsonl", "univg_fast")
    convert(disk.path / "own.jsonl", disk.path / "back.jsonl", "univg_r1_stage1")
    assert json.loads((disk.path / "back.jsonl").read_text()) == row


def test_labels_and_image_numbers_of_a_json_answer(disk):
    _, second = records_of(disk, *ROWS["vlm_r1"])[0]
    assert second.targets[0].image == 1 and second.targets[0].label == "dog" and second.answer_style == "bbox_2d"
    assert '"bbox_2d": [0, 0, 500, 250], "label": "dog", "image": 2' in second.response


def test_videos_ask_for_the_third_image(disk):
    for name in ("reasonvos", "revos"):
        (record,), _ = records_of(disk, *ROWS[name])
        assert record.target_image == 2 and len(record.images) == 3
        assert record.question.endswith("bounding box in the third image according to the instruction: what moves.")
    assert [path.rsplit("/")[-1] for path in record.images] == ["1.jpg", "3.jpg", "2.jpg"]


def test_the_report_shows_one_rendered_example(disk):
    _, report = records_of(disk, *ROWS["univg_r1_stage2"])
    (example,) = report.examples.values()
    assert "Where is it? First output the thinking process" in example["prompt"]
    assert example["target"] == "<answer>(0,0),(500,250)</answer>"
    details = "\n".join(report.details())
    assert f"{disk.path / 'data.jsonl'}: univg_r1_stage2 2" in details and "Where is it?" in details


@pytest.mark.parametrize(
    ("name", "changes", "kind"),
    [
        ("ms_swift", {"objects": {"bbox": [[0, 0, 30, 10]], "bbox_type": "polar"}}, "schema"),
        ("ms_swift", {"objects": {"bbox": [], "ref": ["dog"]}}, "count"),
        ("ms_swift", {"objects": {"bbox": [[0, 0, 90, 10], [0, 0, 30, 10]], "image_id": [0, 1]}}, "box"),
        ("ms_swift", {"objects": {"bbox": [[0, 0, 9, 10], [0, 0, 30, 10]], "image_id": [0, 2]}}, "schema"),
        ("ms_swift", {"messages": "text"}, "schema"),
        ("lisa", {"boxes": [[0, 0, 30, 50]]}, "box"),
        ("lisa", {"boxes": []}, "box"),
        ("llmseg", {"bbox": [[1, 2], ["x"]]}, "box"),
        ("reasonvos", {"image_list": ["a.png", "b.png"]}, "count"),
        ("reasonvos", {"bbox_list": ["1,2,3,4"]}, "box"),
        ("revos", {"video_id": "gone"}, "missing"),
        ("revos", {"frames": [0, 1, 3]}, "schema"),
        ("verl", {"prompt": []}, "schema"),
        ("verl", {"reward_model": {}}, "schema"),
        ("easy_r1", {"answer": 5}, "box"),
        ("mig_bench", {"answer": [0.1, 0.2, 1.5, 0.6]}, "box"),
        ("mgrounding", {"conversations": ROWS["mgrounding"][0]["conversations"][:5]}, "schema"),
        ("univg_fast", {"targets": [{"image": 0}]}, "schema"),
        ("univg_fast", {"targets": [{"box": [0, 0, 1, 1], "image": 2}]}, "schema"),
        ("univg_fast", {"coordinates": "polar"}, "schema"),
    ],
)
def test_a_broken_row_is_named(disk, name, changes, kind):
    path = disk.jsonl(ROWS[name][0], ROWS[name][0] | changes)
    _, report = scan([path])
    assert [(bad.kind, bad.source) for bad in report.bad] == [(kind, f"{path}:2")]
    assert report.bad[0].message.startswith(f"{path}:2: ")


def test_the_commands(disk, capsys):
    source = str(disk.jsonl(*ROWS["lisa"]))
    assert main(["show", source]) == 0
    assert f"{source}: lisa 1" in capsys.readouterr().out
    assert main(["convert", source, str(disk.path / "out.jsonl"), "--to", "univg_r1_stage2"]) == 0
    assert json.loads((disk.path / "out.jsonl").read_text())["answer"] == list(BOX)
    assert main(["show", str(disk.path / "gone.json")]) == 2
    assert "gone.json: no such file" in capsys.readouterr().err
    assert main(["show", str(disk.jsonl({"question": 1}))]) == 1
    done = subprocess.run([sys.executable, "-m", "univg_fast.data", "show", source], capture_output=True, text=True)
    assert done.returncode == 1 and "left out" in done.stderr


def test_a_file_may_be_converted_in_its_own_place(tmp_path: Path) -> None:
    """Nothing of the old file is lost before the new one is whole; what fails leaves it as it was."""
    path = tmp_path / "records.jsonl"
    path.write_text('{"question": "<image>Where?", "answer": [1, 2, 30, 40], "images": ["a.png"]}\n')
    before = path.read_text()
    with pytest.raises(ValueError):
        convert(path, path, "no format")
    assert path.read_text() == before
    assert convert(path, path, "univg_fast").written == 1
    assert json.loads(path.read_text())["question"] == "<image>Where?"
    assert [p.name for p in tmp_path.iterdir()] == ["records.jsonl"]
