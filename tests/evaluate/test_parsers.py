"""Parsers of answers, each rule by an example that it decides alone."""

from __future__ import annotations

from typing import Any

import pytest

from univg_fast.evaluate.parsers import PARSERS, named_image, parser_of

HUGE = "9" * 5000  # digits that int() refuses
CASES: list[tuple[str, str, Any]] = [
    ("answer_tag", "<answer>(1,2),(3,4) or (5,6),(7,8)</answer>", (5, 6, 7, 8)),
    ("answer_tag", "<answer>(1,2),(3,4)</answer><answer>(5,6),(7,8)</answer>", (5, 6, 7, 8)),
    ("answer_tag", "<answer>(1,2),(3,4)</answer><answer>(5,6),(7,8)", (1, 2, 3, 4)),  # the last one that is closed
    ("answer_tag", "(1,2),(3,4)", None),
    ("answer_tag", "<think>(1,2),(3,4)</think><answer>none</answer>", None),
    ("answer_tag", '<answer>[{"bbox_2d": [1, 2.25, 3, 4], "label": "x"}]</answer>', (1, 2.25, 3, 4)),
    ("answer_tag", "<answer>(0.1234567890123,2),(3,4)</answer>", (0.1234567890123, 2, 3, 4)),  # in full
    ("univg_r1", "<think>(9,9),(9,9)</think><answer>(1,2),(3,4)</answer>", (9, 9, 9, 9)),
    ("univg_r1", "[1, 2, 3, 4] then (5,6),(7,8)", (5, 6, 7, 8)),
    ("univg_r1", "[0.1, 0.2, 0.3, 0.4]", None),
    ("univg_r1", "[0.1, 0.2, 0.3, 0.4] [1, 2, 3, 4]", None),  # the fractions are found first, and refused
    ("univg_r1", f"(1,2),(3,4) ({HUGE},2),(3,4)", (1, 2, 3, 4)),  # the last is dropped unread
    ("univg_r1", f"(1,2),(3,4) ({HUGE},2),(3,4) (5,6),(7,8)", None),  # one that cannot be read spoils all
    ("migician", "[0.5, 1.0, 700.5, 2.25] [0.1, 0.2, 0.3, 0.4]", (0.5, 1.0, 700.5, 2.25)),
    ("migician", "(0.1, 0.2),(0.3,0.4)", None),  # no white space in that pattern
    ("univg_r1_zero_shot", "( 1 ,2 ) , (3,4) (5,6),(7,8)", (1, 2, 3, 4)),
    ("lmms_eval", "[ 0.1, -0.2, 1, 0.4 ] [1,2,3,4]", (0.1, -0.2, 1, 0.4)),
    ("lmms_eval", "(0.1,0.2),(0.3,0.4)", None),
]


@pytest.mark.parametrize(("name", "text", "box"), CASES, ids=[f"{i}-{name}" for i, (name, *_) in enumerate(CASES)])
def test_the_box_that_is_scored(name: str, text: str, box: Any) -> None:
    boxes = PARSERS[name].read(text, "the question", 2, True).boxes
    assert (boxes[-1] if boxes else None) == box


def test_without_reasoning_an_answer_needs_no_tags() -> None:
    assert PARSERS["answer_tag"].read("(1,2),(3,4)", "", 2, False).boxes == [(1, 2, 3, 4)]
    assert PARSERS["answer_tag"].read("(1,2),(3,4) <answer>", "", 2, False).boxes == []


def test_the_zero_shot_scripts_read_the_prompt_too() -> None:
    assert PARSERS["univg_r1_zero_shot"].read("(1,2),(3,4)", "the one at (5,6),(7,8)", 1, True).boxes == [(5, 6, 7, 8)]


def test_units() -> None:
    box = (0.5, 1.0, 700.5, 250)
    assert PARSERS["migician"].scaled(box, "fractions") == (0.5, 0.001, 0.7005, 0.25)
    assert PARSERS["migician"].scaled(box, "thousandths") == (500.0, 1.0, 700.5, 250)
    assert PARSERS["univg_r1"].scaled((1, 2, 3, 4), "thousandths") == (1, 2, 3, 4)
    assert PARSERS["lmms_eval"].scaled((0.1, 0.2, 0.3, 1), "thousandths") == (100.0, 200.0, 300.0, 1000)


def test_the_image_of_an_answer() -> None:
    read = PARSERS["answer_tag"].read
    for text, image in (
        ("<think>Image-1</think><answer>Image-2: (1,2),(3,4)</answer>", 1),
        ("<think>Image-1, no, the third picture.</think><answer>(1,2),(3,4)</answer>", 2),
        ("<think>Image-9</think><answer>(1,2),(3,4)</answer>", None),
        ("", None),
    ):
        assert named_image(text, read(text, "", 3, True), 3) == image
        assert named_image(text, read(text, "", 1, True), 1) == 0


def test_an_unknown_name() -> None:
    with pytest.raises(ValueError, match="--parser: expected one of answer_tag, .*, got 'x'"):
        parser_of("x")
