"""Each filter removes what it is there for, and nothing else."""

from __future__ import annotations

import time

import pytest

from univg_fast.cot.facts import UnknownImage
from univg_fast.cot.filters import Candidate, Thresholds, best, gains, names_the_image, removed_by, score
from univg_fast.structs import Record, Target

BOX = (163, 348, 735, 999)
RECORD = Record("u", "f:1", ("0.png", "1.png", "2.png"), "q", (Target(BOX, 2, "cat"),))
SIZES = [(640, 480), (640, 480), (1280, 720)]
ANSWER = "<answer>(163,348),(735,999)</answer>"
THINK = "The cat of Image-1 appears again. The target is in Image-3."


def verdict(think: str = THINK, answer: str = ANSWER, record: Record = RECORD, **scores: float) -> str | None:
    return removed_by(Candidate(f"<think>{think}</think>\n{answer}", **scores), record, SIZES, Thresholds())


def test_a_good_one_stays() -> None:
    assert verdict() is None
    assert verdict("In Image-1, 12 people; in Image-2, 3 dogs at 100 metres. So it is the third image.") is None


@pytest.mark.parametrize(
    "text",
    [
        THINK + ANSWER,
        f"<think>{THINK}</think>",
        f"<think>{THINK}</think>{ANSWER} done",
        f"Well. <think>{THINK}</think>{ANSWER}",
        f"<think>{THINK}</think>{ANSWER}{ANSWER}",
        f"<think>{THINK}<think></think>{ANSWER}",
        f"<think> </think>{ANSWER}",
        f"<think>{THINK}</think><answer>Image-3</answer>",
        f"<think>{THINK}</think><answer>[163, 348, 735, 999]</answer>",
        f"{ANSWER}<think>{THINK}</think>",
        f"<think>{THINK} <|image_pad|></think>{ANSWER}",
        f"<think><image> {THINK}</think>{ANSWER}",
    ],
)
def test_format(text: str) -> None:
    assert removed_by(Candidate(text), RECORD, SIZES, Thresholds()) == "format"


def test_format_in_other_styles() -> None:
    listed = Record("u", "f", RECORD.images, "q", RECORD.targets, answer_style="bbox_2d")
    answer = '<answer>[{"bbox_2d": [163, 348, 735, 999], "label": "cat", "image": 3}]</answer>'
    assert verdict(answer=answer, record=listed) is None
    assert verdict(answer="<answer>[]</answer>", record=listed) == "format"
    assert verdict(answer=answer.replace('"image": 3', '"image": 1'), record=listed) == "image"


@pytest.mark.parametrize(
    "leak",
    [
        "(163,348),(735,999)",  # to the letter
        "[160, 350, 740, 990]",  # nearly
        "from x 163 and y 348 to x 735",  # in words
        "between 0.163, 0.348 and 0.735",  # 0 to 1
        "[209, 251, 941, 719]",  # pixels of the stored image
        "corners at 209, 251, 941",
        "[136, 175, 617, 503]",  # pixels of the image as the model sees it
        "16% to 73% across, from 35% down",
        "16 to 73 percent of the width, and from 35 per cent of the height",
        "16.3％, 34.8％, 73.5％",
        ".163,.348,.735,.999",
        ".16 to .74 across, from .35 down",  # rounded
        "x=209px, y=251 px, x2=941px",
        "209px/251px/941px",
        "１６３, ３４８, ７３５",
        "the centre (449,674), 572x651",  # centre, width and height
        "it is 572 wide and 651 tall, centred at 449,674",
        "x=.163 y=.348 w=.572 h=.651",  # a corner, width and height
        "x 209 px, y 251 px, 732 px wide",
        "163/1000, 348/1000, 735/1000",
        "16/100 and 35/100 and 74/100",
    ],
)
def test_leak(leak: str) -> None:
    assert verdict(f"The cat lies at {leak}. {THINK}") == "leak"


def test_boxes_of_other_things_may_be_told() -> None:
    assert verdict(f"The dog of Image-1 at (10,20),(90,200) has no match. {THINK}") is None
    assert verdict(f"In 1998, 163 cats were counted. {THINK}") is None
    assert (
        verdict(f"I am 100% sure: 2 of 3 dogs, 16 cats and 50 % of 1.5 litres of milk, 0.2 of it cold. {THINK}") is None
    )
    assert verdict(f"The dog, 572 by 651, is larger; it took 3/4 of the race on 16/7. {THINK}") is None
    assert verdict(f"It takes 35% of the picture, the dog 16 %, both lie at .5 of its height. {THINK}") is None


def test_a_side_of_the_image_is_said_of_anything() -> None:
    half = Record("u", "f:1", RECORD.images, "q", (Target((0, 0, 500, 1000), 2, "cat"),))
    answer = "<answer>(0,0),(500,1000)</answer>"
    assert verdict(f"I am 100% sure, and 50% of it is visible. {THINK}", answer, half) is None
    assert verdict(f"It takes 50% of the width and 100% of the height. {THINK}", answer, half) == "leak"


@pytest.mark.parametrize(
    "think",
    ["The target is in Image-2.", "It is the cat.", "The target is in Image-3, unlike Image-1.", "It is in Image-30."],
)
def test_image(think: str) -> None:
    assert verdict(think) == "image"


def test_a_record_that_leaves_its_image_open_is_not_waved_through() -> None:
    """`build` counts it before anything is asked or judged; here it would switch the filter off."""
    for targets in ((Target(BOX),), (Target(BOX, 2), Target(BOX))):
        unknown = Record("u", "f:1", RECORD.images, "q", targets)
        with pytest.raises(UnknownImage, match="f:1: which of its 3 images"):
            names_the_image(Candidate(f"<think>{THINK}</think>{ANSWER}"), unknown)


def test_all_images_of_several_targets_must_be_named() -> None:
    both = Record("u", "f", RECORD.images, "q", (Target(BOX, 0), Target(BOX, 2)))
    answer = "<answer>Image-1: (163,348),(735,999)\nImage-3: (163,348),(735,999)</answer>"
    assert verdict("The targets are in Image-1 and Image-3.", answer, both) is None
    assert verdict("The targets are in Image-3.", answer, both) == "image"


@pytest.mark.parametrize(
    ("direct", "reasoned", "kept"),
    [
        (0.5, 0.549, False),
        (0.5, 0.551, True),  # right, and 10 % better
        (0.9, 0.95, False),
        (1.0, 1.0, False),
        (0.4, 0.5, True),  # corrected
        (0.4, 0.47, False),
        (0.4, 0.49, True),  # still wrong, and 20 % better
        (0.0, 0.0, False),
        (0.0, 0.01, True),
    ],
)
def test_iou_gain(direct: float, reasoned: float, kept: bool) -> None:
    assert gains(direct, reasoned, Thresholds()) == kept
    assert verdict(score=reasoned, direct=direct) == (None if kept else "iou_gain")


def test_score_matches_boxes_with_targets_of_their_image() -> None:
    two = Record("u", "f", ("0", "1"), "q", (Target((0, 0, 500, 500), 0), Target((500, 500, 1000, 1000), 1)))
    right = "Image-1: (0,0),(500,500)\nImage-2: (500,500),(1000,1000)"
    assert score(right, two) == 1.0
    assert score("Image-2: (0,0),(500,500)\nImage-1: (500,500),(1000,1000)", two) == 0.0
    assert score("Image-1: (0,0),(500,250)", two) == pytest.approx(0.25)
    assert score(right + "\nImage-2: (0,0),(9,9)\nImage-2: (0,0),(9,9)", two) == 0.5
    assert score("", two) == score("(5,5),(1,1)", two) == 0.0


def test_the_best_has_the_highest_iou_then_the_shortest_trace() -> None:
    made = [Candidate(f"<think>{'x' * n}</think>", s) for n, s in ((9, 0.5), (9, 0.8), (3, 0.8), (1, 0.1))]
    assert best(made) is made[2]
    unscored = [Candidate("<think>long</think>"), Candidate("<think>s</think>")]
    assert best(unscored) is unscored[0]


def test_hostile_texts_take_linear_time() -> None:
    start = time.process_time()
    for unit in ("<think>", "(1,2),(3", "[163, 348, ", "163 348 735 ", "Image-", '{"bbox_2d": [', "<"):
        text = unit * (200_000 // len(unit))
        removed_by(Candidate(text), RECORD, SIZES, Thresholds())
        removed_by(Candidate(f"<think>{text.replace('<', '')}</think>{ANSWER}"), RECORD, SIZES, Thresholds())
    assert time.process_time() - start < 20
