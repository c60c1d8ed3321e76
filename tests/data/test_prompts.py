"""The styles of answers: what is asked, what a right answer looks like, and that the one can be read as the other."""

import json
import re
from dataclasses import replace

import pytest

from univg_fast.data.formats.conversations import answered
from univg_fast.data.prompts import (
    DIRECT_PREFIX,
    INSTRUCTIONS,
    SENTENCE,
    answer_text,
    prompt_text,
    split_instruction,
    target_text,
)
from univg_fast.data.records import read_records
from univg_fast.rewards.parse import parse
from univg_fast.structs import Record, Target

ONE = (Target((1, 2, 30, 40), 1, "dog"),)
SEVERAL = (*ONE, Target((0, 0, 1000, 5), 0), Target((7, 8, 9, 10), 1, 'a "cät"'))
RECORD = Record(uid="u", source="f:1", images=("a", "b"), question="Where?", targets=ONE)


def test_univg_r1_with_one_box_is_the_references_to_the_letter():
    assert answer_text(ONE) == "(1,2),(30,40)"
    assert target_text(RECORD, "x") == "<think>x</think>\n<answer>(1,2),(30,40)</answer>"
    answer = parse(target_text(RECORD, "x"), mode="univg_r1")
    assert answer.format and [one.box for one in answer.boxes] == [ONE[0].box]


@pytest.mark.parametrize(
    ("style", "expected"),
    [
        ("univg_r1", "Image-2: (1,2),(30,40)\nImage-1: (0,0),(1000,5)\nImage-2: (7,8),(9,10)"),
        (
            "bbox_2d",
            '[{"bbox_2d": [1, 2, 30, 40], "label": "dog", "image": 2}, {"bbox_2d": [0, 0, 1000, 5], "image": 1},'
            ' {"bbox_2d": [7, 8, 9, 10], "label": "a \\"cät\\"", "image": 2}]',
        ),
        (
            "box_tokens",
            "Image-2: <|box_start|>(1,2),(30,40)<|box_end|>\nImage-1: <|box_start|>(0,0),(1000,5)<|box_end|>\n"
            "Image-2: <|box_start|>(7,8),(9,10)<|box_end|>",
        ),
    ],
)
def test_several_boxes_over_several_images(style, expected):
    assert answer_text(SEVERAL, style) == expected


@pytest.mark.parametrize("cot", [True, False])
@pytest.mark.parametrize("style", ["univg_r1", "bbox_2d", "box_tokens"])
@pytest.mark.parametrize("targets", [ONE, SEVERAL], ids=["one", "several"])
def test_a_target_is_read_as_what_it_was_made_from(folder, style, targets, cot):
    """Boxes, images and (where the style has them) labels, by the reader of stage-1 files."""
    record = replace(RECORD, targets=targets, answer_style=style, cot=cot)
    response = target_text(record, "It is left." if cot else None)
    read = answered(response, None, 2)
    assert [tuple(t.box) for t in read] == [t.box for t in targets]
    if len(targets) > 1 or style == "bbox_2d":
        assert [t.image for t in read] == [t.image for t in targets]
    if style == "bbox_2d":
        assert [t.label for t in read] == [t.label for t in targets]
    for mode in ("strict", "lenient"):  # and the parser of rewards and evaluation agrees
        answer = parse(response, style, mode, cot)
        assert answer.strict and [(t.box, t.image, t.label) for t in answer.boxes] == [
            (tuple(t.box), t.image, t.label) for t in read
        ]
    question = prompt_text(record).split("<|vision_end|>")[-1].split("<|im_end|>")[0]
    row = folder.stage1("<image><image>" + question, response)
    (again,), bad = read_records(folder.jsonl(row))
    assert not bad and again.question == "Where?" and again.cot == cot
    assert again.answer_style == (style if style != "univg_r1" else "univg_r1")


@pytest.mark.parametrize("wanted", ["box", "image", "boxes", "all"])
@pytest.mark.parametrize("style", ["univg_r1", "bbox_2d", "box_tokens"])
@pytest.mark.parametrize("cot", [True, False])
def test_the_instruction_of_a_style_is_asked_and_taken_off_again(style, wanted, cot):
    targets = SEVERAL if wanted in ("boxes", "all") else ONE
    if wanted in ("box", "boxes"):
        targets = tuple(replace(target, image=None) for target in targets)
    record = replace(RECORD, targets=targets, answer_style=style, cot=cot, names_images=wanted == "image")
    question, key = asked(record), (style, wanted)
    nothing = not cot and key == ("univg_r1", "box")  # UniVG-R1's own, of several images
    assert split_instruction(question) == ("Where?", None if nothing else cot)
    assert ("<think>" in question) == cot
    key = (style, True, wanted in ("image", "all")) if style == "bbox_2d" else key
    assert question == "Where?" + INSTRUCTIONS[key][0 if cot else 1]


@pytest.mark.parametrize("images", [(1, 0, 1), (None, None, None), (1, None, 0)], ids=["known", "unknown", "partly"])
@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("style", ["univg_r1", "bbox_2d", "box_tokens"])
def test_what_the_prompt_asks_of_several_boxes_the_answer_says(style, number, images):
    """Images where all of them are known and there are several; labels where there are any."""
    told = [(None if image is None else min(image, number - 1)) for image in images]
    targets = tuple(replace(target, image=image) for target, image in zip(SEVERAL, told, strict=True))
    record = replace(RECORD, images=("a", "b")[:number], targets=targets, answer_style=style)
    question, answer = asked(record), target_text(record)
    named = number == 2 and None not in images
    for text in (question, answer):
        assert (re.search(r'Image-\d|"image": \d', text) is not None) == named
        assert ('"label": ' in text) == (style == "bbox_2d")
    bare = replace(record, targets=tuple(replace(target, label=None) for target in targets))
    assert '"label"' not in asked(bare) + target_text(bare)


@pytest.mark.parametrize("cot", [True, False])
def test_a_sentence_is_asked_for_in_no_form(cot):
    said = "It has 3 legs, as [1, 2, 30, 40] shows."
    record = replace(RECORD, cot=cot, response=f"<think>a</think><answer>{said}</answer>" if cot else said)
    suffix = SENTENCE[0] if cot else ""
    assert asked(record) == "Where?" + suffix and "box" not in suffix
    assert split_instruction(asked(record)) == ("Where?", True if cot else None)
    assert asked(replace(record, images=("a",), targets=())) == "Where?" + suffix


def asked(record):
    return prompt_text(record).split("<|vision_end|>")[-1].split("<|im_end|>")[0]


def test_the_notice_of_a_single_image_is_for_one_image():
    """UniVG-R1 puts it before questions about one image of COCO."""
    direct = replace(RECORD, cot=False)
    assert asked(direct) == "Where?"
    assert asked(replace(direct, images=("a",))) == DIRECT_PREFIX + "Where?"
    assert asked(replace(direct, images=("a",), targets=SEVERAL)).startswith("Where?")


@pytest.mark.parametrize("cot", [True, False])
@pytest.mark.parametrize("style", ["univg_r1", "box_tokens"])
def test_an_answer_that_names_its_image(folder, style, cot):
    """Asked for, taught and read again from the file that was made of it."""
    record = replace(RECORD, answer_style=style, cot=cot, names_images=True)
    response = target_text(record, "It is left." if cot else None)
    assert "Image-2: " in response and "the image and the bounding box" in asked(record)
    (again,), bad = read_records(folder.jsonl(folder.stage1("<image><image>" + asked(record), response)))
    assert not bad and again.names_images and asked(again) == asked(record) and again.response == response
    assert [(t.box, t.image) for t in again.targets] == [(ONE[0].box, 1)]


@pytest.mark.parametrize("style", ["univg_r1", "bbox_2d", "box_tokens"])
def test_a_style_that_is_asked_for_is_that_of_the_target_too(folder, style):
    rows = [folder.stage1(response=text) for text in (
        "<think>Left.</think> <answer>(0,0),(500,250)</answer>",
        '<think>Left.</think><answer>[{"bbox_2d": [0, 0, 500, 250], "label": "dog", "image": 2}]</answer>',
        "It's in the second image. <|box_start|>(0,0),(500,250)<|box_end|>",
    )]  # fmt: skip
    records, bad = read_records(folder.jsonl(*rows), answer_style=style)
    assert not bad and {record.answer_style for record in records} == {style}
    for record, row in zip(records, rows, strict=True):
        read = parse(record.response, style, "lenient", record.cot)
        assert [t.box for t in read.boxes] == [(0, 0, 500, 250)] and read.strict and "It's" not in record.response
        assert record.cot == ("<think>Left.</think>" in record.response) == (row is not rows[2])
    own = {"univg_r1": rows[0]["conversations"][1]["value"], "bbox_2d": rows[1]["conversations"][1]["value"]}
    own["box_tokens"] = "<|box_start|>(0,0),(500,250)<|box_end|>"  # MGrounding's words say where, as a label does
    kept = records[list(own).index(style)].response
    assert kept == own[style], "what has the style already stays as it is"


def test_the_json_that_is_asked_for_is_json():
    text = prompt_text(replace(RECORD, answer_style="bbox_2d", targets=SEVERAL))
    shown = text[text.index("{") : text.index("}") + 1]
    for name in ("x1", "y1", "x2", "y2"):
        shown = shown.replace(name, "1")
    assert json.loads(shown) == {"bbox_2d": [1, 1, 1, 1], "label": "name", "image": 1}


def test_all_boxes_at_once_are_asked_for_only_where_there_are_several():
    assert "all bounding boxes" not in prompt_text(RECORD)
    assert "all bounding boxes" in prompt_text(replace(RECORD, targets=SEVERAL))


def test_the_form_of_box_tokens_follows_the_question_as_in_the_benchmarks_scripts():
    form = "Format:<|box_start|>(x1,y1),(x2,y2)<|box_end|>. Don't generate addtional words."
    assert asked(replace(RECORD, targets=(replace(ONE[0], image=None),), answer_style="box_tokens", cot=False)) == (
        f"Where?{form}"
    )
