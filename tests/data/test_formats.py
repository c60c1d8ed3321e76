"""Files made as each format's description says are recognised by content and understood."""

import json

import pytest

from univg_fast.data.convert import convert
from univg_fast.data.formats import FORMATS, recognise
from univg_fast.data.scan import scan

from .examples import HARD, ROWS, records_of

BOX = (0, 0, 500, 250)


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


@pytest.mark.parametrize(
    ("info", "image"),
    [
        ("Image-2: (0,0),(500,250)", 1),
        ("the second image", 1),
        ({"Image-2": [0, 0, 0.5, 0.25]}, 1),
        ({"image": "b.png", "bbox": [0, 0, 0.5, 0.25]}, 1),
        ("images/b.png", 1),
        (["b.png", [0, 0, 0.5, 0.25]], 1),
        ({"img_idx": 0}, 0),
        ({"target_image": 2}, 1),
        # which of them, or counted from where?
        ({"img_idx": 1}, None),
        ({"target": 2}, None),
        ("Not in Image-1, but in Image-2.", None),
        ("a.png, b.png", None),
        ("bb.png", None),
        ({"image": "b.png", "img_idx": 0}, None),
        ({"image_id": 7}, None),
        ("", None),
        (None, None),
        ([0, 0, 500, 250], None),
    ],
)
def test_additional_information_about_one_image_names_it(disk, info, image):
    row = ROWS["mig_bench"][1] | {"additional_info": info}
    assert records_of(disk, row)[0][0].target_image == image
    assert records_of(disk, row | {"task": "diff"})[0][0].target_image is None


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


def test_frames_are_numbered_by_the_number_in_their_names(disk):
    """As UniVG-R1's script does: 10.jpg after 9.jpg, and nothing counts that is no picture."""
    (disk.path / "long").mkdir()
    for name in [*(f"{i}.jpg" for i in range(12)), ".DS_Store", "7.txt"]:
        (disk.path / "long" / name).write_bytes((disk.path / "a.png").read_bytes())
    (record,), _ = records_of(disk, ROWS["revos"][0] | {"video_id": "long", "frames": [0, 2, 10]})
    assert [path.rsplit("/")[-1] for path in record.images] == ["0.jpg", "2.jpg", "10.jpg"]


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


def test_each_answer_of_an_ms_swift_conversation_is_a_record(disk):
    records, _ = records_of(disk, *HARD["swift turns"])
    first, second = records[:2]
    assert [t.image for r in records[:4] for t in r.targets] == [0, 1, 0, 1]
    assert [t.label for r in records[:2] for t in r.targets] == ["dog", "cat"]
    assert first.question == "Where is the <|object_ref_start|>dog<|object_ref_end|>?" and first.box == BOX
    assert second.question == "And the <|object_ref_start|>cat<|object_ref_end|>?" and second.box == (
        100,
        100,
        500,
        500,
    )
    assert len(records[2].images) == 1 and len(records[3].images) == 2
    assert records[5].response is None and "<|box_start|>(17,50),(500,1000)<|box_end|>" in records[5].question
    assert records[5].uid == "s.1" and records[5].source.endswith(":3#1") and records[5].box == (83, 125, 150, 225)


def test_an_image_of_ms_swift_may_be_a_mapping(disk):
    row = ROWS["ms_swift"][0] | {"images": [{"path": "a.png", "bytes": None}, {"path": "b.png"}]}
    (record,), _ = records_of(disk, row)
    assert record.images == (str(disk.path / "a.png"), str(disk.path / "b.png"))
    convert(disk.path / "data.jsonl", disk.path / "own.jsonl", "univg_fast")
    convert(disk.path / "own.jsonl", disk.path / "back.jsonl", "ms_swift")
    assert json.loads((disk.path / "back.jsonl").read_text()) == row
    _, report = scan([disk.jsonl(row | {"images": [{"bytes": "aGk=", "path": None}, "b.png"]})])
    assert "images: bytes of images are read from parquet" in report.bad[0].message
