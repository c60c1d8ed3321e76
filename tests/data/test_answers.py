"""The answers of stage-1 files, in whatever spelling: what is learned has the form that the prompt asks for."""

import json

import pytest
from PIL import Image

from univg_fast.data.convert import convert
from univg_fast.data.prompts import prompt_text
from univg_fast.data.scan import scan
from univg_fast.rewards import parse

from .examples import HARD, ROWS, turns

BOX = (0, 0, 500, 250)


@pytest.fixture
def disk(folder):
    (folder.path / "video").mkdir()
    for name in ("3.jpg", "1.jpg", "2.jpg"):
        Image.new("RGB", (60, 40)).save(folder.path / "video" / name)
    Image.new("RGB", (100, 80)).save(folder.path / "c.png")
    return folder


def records_of(folder, *rows):
    records, report = scan([folder.jsonl(*rows)])
    assert not report.bad, report.bad
    return list(records), report


def asked_and_taught(record):
    """The instruction of the prompt, and the answer in the strict form of the record's style."""
    prompt = prompt_text(record).split("<|im_start|>user")[1]
    return prompt, parse(record.response, record.answer_style, "strict", record.cot)


@pytest.mark.parametrize("value", [[0, 0, 30, 10], [[0, 0, 30, 10]], [0.0, 0, 30.0, 10]])
def test_an_answer_of_vlm_r1_may_be_a_list(disk, value):
    row = ROWS["vlm_r1"][0] | {"conversations": turns("<image>Where?", value)}
    (record,), _ = records_of(disk, row)
    assert record.box == BOX and record.response == '[{"bbox_2d": [0, 0, 500, 250]}]'
    convert(disk.path / "data.jsonl", disk.path / "own.jsonl", "univg_fast")
    convert(disk.path / "own.jsonl", disk.path / "back.jsonl", "vlm_r1")
    assert json.loads((disk.path / "back.jsonl").read_text()) == row


@pytest.mark.parametrize("value", [[], [1, 2, 3], ["a"], [[0, 0, 30, 10], 5], {"box": 1}, 7])
def test_other_answers_are_no_texts(disk, value):
    _, report = scan([disk.jsonl(ROWS["vlm_r1"][0] | {"conversations": turns("<image>Where?", value)})])
    assert [bad.kind for bad in report.bad] in (["box"], ["schema"])


@pytest.mark.parametrize("name", ["swift targets", "several targets with a response", "several in a sentence"])
def test_of_several_boxes_the_target_is_what_the_prompt_asks_for(disk, name):
    """Lines that name their images, although the file has the boxes one behind the other."""
    rows = HARD | {
        "several in a sentence": [
            {"images": ["a.png", "b.png"], "conversations": turns("<image><image>Both?", "There is one in the second "
             "image, <|box_start|>(0,0),(500,250)<|box_end|>, and in Image-1: <|box_start|>(1,2),(3,4)<|box_end|>.")}
        ]
    }  # fmt: skip
    (record,), _ = records_of(disk, *rows[name])
    prompt, answer = asked_and_taught(record)
    assert "all bounding boxes, one on a line, as Image-1: " in prompt and not record.cot
    assert answer.strict and [(b.box, b.image) for b in answer.boxes] == [(t.box, t.image) for t in record.targets]
    assert len(record.response.splitlines()) == 2


@pytest.mark.parametrize(
    ("name", "response", "style", "taught"),
    [
        ("vlm_r1", "[0, 0, 30, 10]", "bbox_2d", '[{"bbox_2d": [0, 0, 500, 250]}]'),
        ("vlm_r1", "<answer>[0, 0, 30, 10]</answer>", "bbox_2d", '<answer>[{"bbox_2d": [0, 0, 500, 250]}]</answer>'),
        ("sharegpt", "<answer>(0,0),(500,250)</answer>", "univg_r1", "<answer>(0,0),(500,250)</answer>"),
        ("sharegpt", "(0,0,500,250)", "univg_r1", "(0,0),(500,250)"),
        ("sharegpt", "<box>0 0 500 250</box>", "univg_r1", "(0,0),(500,250)"),
        ("sharegpt", "<think>Not [1, 2, 3, 4].</think><answer>(0, 0),(500, 250)</answer>", "univg_r1", None),
        ("sharegpt", "<think>Not (1,2),(3,4).</think><answer>[0, 0, 500, 250]</answer>", "bbox_2d",
         '<think>Not (1,2),(3,4).</think><answer>[{"bbox_2d": [0, 0, 500, 250]}]</answer>'),
    ],
)  # fmt: skip
def test_the_style_of_a_target_is_the_prompts(disk, name, response, style, taught):
    key = "image" if name == "vlm_r1" else "images"
    row = {key: ["a.png"], "conversations": turns("<image>Where?", response)}
    (record,), _ = records_of(disk, row)
    prompt, answer = asked_and_taught(record)
    assert (record.answer_style, record.response) == (style, response if taught is None else taught)
    assert answer.strict and [box.box for box in answer.boxes] == [BOX]
    assert ("<think>" in prompt) == ("<think>" in response) == record.cot


def test_boxes_of_a_files_texts_are_counted_in_their_own_images(disk):
    """In pixels of images of two sizes: the target's, and one of the thinking that leaves its image."""
    said = "<think>In Image-1, not at [0, 0, 66, 10].</think><answer>[0, 0, 50, 20]</answer>"
    row = {"image": ["a.png", "c.png"], "target_image": 1, "conversations": turns("<image><image>Where?", said)}
    (record,), _ = records_of(disk, row)
    assert record.box == BOX and "not at [0, 0, 1100, 250]" in record.response
    assert parse(record.response, "bbox_2d").boxes[0].box == BOX
