"""UniVG-R1's reward rules: its golden vectors, hostile texts, and the speed promised."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from speed import is_linear, within

from univg_fast.config.reward_recipes import RECIPES
from univg_fast.rewards import TERMS, Settings, parse, score
from univg_fast.structs import Record, Target

GT = (100, 200, 300, 400)
RECORD = Record(uid="u", source="f:1", images=("a",), question="q", targets=(Target(GT),))
WEIGHTS = {"iou": 1.0, "format": 1.0}
# (completion, format, IoU), from the rules re-derived and run
GOLDEN = [
    ("<think>a</think>\n<answer>(100,200),(300,400)</answer>", 1, 1.0),
    ("junk <think>a</think><answer>(110, 210), (310, 410)</answer>", 1, 0.822323),
    ("<think>a (1,2),(3,4)</think> <answer> (100,200),(300,400) </answer>", 0, 1.0),
    ("<think>a</think><answer>(100,200),(300,400)</answer> done", 0, 1.0),
    ("<think>a</think><answer>[100,200,300,400]</answer>", 0, 0.0),
    ("<think>a</think><answer>(300,400),(100,200)</answer>", 1, 0.0),
    ("(100,200),(300,400)", 0, 0.0),
    ("<think>a</think><answer>(100,200),(300,400) (1,2),(3,4)</answer>", 0, 1.0),
]


def test_the_golden_group():
    scores = score([text for text, _, _ in GOLDEN], [RECORD] * 8, WEIGHTS)
    np.testing.assert_allclose(scores.parts["format"], [form for _, form, _ in GOLDEN])
    np.testing.assert_allclose(scores.parts["iou"], [iou for _, _, iou in GOLDEN], atol=5e-7)
    assert scores.total.dtype == np.float32
    assert scores.total.mean() == pytest.approx(0.977790, abs=1e-6)
    assert scores.total.std(ddof=1) == pytest.approx(0.724300, abs=1e-6)
    assert scores.parts["iou"].mean() == pytest.approx(0.602790, abs=1e-6)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think></think><answer>(1,2),(3,4)</answer>", True),
        ("<think>a\nb</think> \n\t<answer>(1,  2),\n(3,4)</answer>", True),
        (
            "<think>a</think><answer>(1,2),(3,4)</answer>\n",
            True,
        ),  # the end allows one line feed, as Python's $ does
        ("<think>a</think><answer>(1,2),(3,4)</answer>\n\n", False),
        ("<think>a</think><answer>(1 ,2),(3,4)</answer>", False),
        ("<think>a</think><answer>(1,2) ,(3,4)</answer>", False),
        ("<think>a</think><answer>(1,2)(3,4)</answer>", False),
        ("<think>a</think><answer>(-1,2),(3,4)</answer>", False),
        ("<think>a</think><answer>(1.0,2),(3,4)</answer>", False),
        ("<think>a</think>so<answer>(1,2),(3,4)</answer>", False),
        ("<think>a<answer>(1,2),(3,4)</answer>", False),
        ("a</think><answer>(1,2),(3,4)</answer>", False),
        ("</think><think><answer>(1,2),(3,4)</answer>", False),
        ("<think></think><think>a</think></think><answer>(1,2),(3,4)</answer>", True),
        ("<thin</think><answer>(1,2),(3,4)</answer>", False),
        ("<think>a</think><answer>(9,9),(9,9)</answer><think>b</think><answer>(1,2),(3,4)</answer>", True),
        ("", False),
    ],
)
def test_format(text, expected):
    assert parse(text).format is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<answer>the box is (1, 2),  (3,4), I think</answer>", (1, 2, 3, 4)),
        ("<answer>(1,2),(3,4)</answer><answer>(5,6),(7,8)</answer>", (1, 2, 3, 4)),
        ("<answer>none</answer><answer>(5,6),(7,8)</answer>", None),
        ("<answer>(1,2),(3,4)", None),
        ("</answer>(1,2),(3,4)<answer>", None),
        ("</answer><answer>(1,2),(3,4)</answer>", (1, 2, 3, 4)),
        ("<answer>(2000,0),(3000,9)</answer>", (2000, 0, 3000, 9)),
        ("<answer>(0007,2),(3,4)</answer>", (7, 2, 3, 4)),
        ("", None),
    ],
)
def test_the_box_that_is_rewarded(text, expected):
    assert [one.box for one in parse(text, mode="univg_r1").boxes] == ([] if expected is None else [expected])


def test_direct_answers_need_a_box_and_no_tags():
    direct = Record(uid="u", source="f:1", images=("a",), question="q", targets=(Target(GT),), cot=False)
    texts = ["it is (100,200),(300,400) or (1,2),(3,4)", "<answer>(100,200),(300,400)</answer>", "no"]
    scores = score(texts, [direct] * 3, WEIGHTS)
    assert scores.parts["format"].tolist() == [1, 1, 0] and scores.parts["iou"].tolist() == [1, 1, 0]


def test_each_completion_is_scored_against_its_own_record():
    other = Record(uid="v", source="f:2", images=("a",), question="q", targets=(Target((0, 0, 10, 10)),), cot=False)
    texts = ["<think>a</think><answer>(100,200),(300,400)</answer>"] * 2
    scores = score(texts, [RECORD, other], {"iou": 2.0, "format": 0.5})
    assert scores.total.tolist() == [2.5, 0.5] and scores.boxes == [GT, GT]


@pytest.mark.parametrize("digits", [10, 5000, 200_000])
def test_numbers_of_any_length(digits):
    text = f"<think>a</think><answer>(0,0),({'9' * digits},{'9' * digits})</answer>"
    scores = score([text], [RECORD], WEIGHTS)
    assert scores.parts["format"][0] == 1 and 0 <= scores.parts["iou"][0] < 1e-12


def one_wide(x1, x2):
    record = Record(uid="u", source="f:1", images=("a",), question="q", targets=(Target((0, 0, 100, 100)),))
    text = f"<answer>({x1},0),({x2},100)</answer>"
    return score([text], [record], {"iou": 1.0}).parts["iou"][0]


def test_an_overlap_of_one_unit_counts_as_none():
    assert one_wide(99, 199) == 0
    assert one_wide(98, 198) == pytest.approx(2 / 198)


boxes = st.tuples(*[st.integers(0, 1000)] * 4)


def literal_iou(given, wanted):
    """The rule as it is written down: x2 and y2 shifted by -1 for the overlap test, +1 for the area."""
    x1, y1 = max(given[0], wanted[0]), max(given[1], wanted[1])
    x2, y2 = min(given[2] - 1, wanted[2] - 1), min(given[3] - 1, wanted[3] - 1)
    inter = (x2 - x1 + 1) * (y2 - y1 + 1) if x1 < x2 and y1 < y2 else 0
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (given, wanted)]
    return inter / (sum(areas) - inter) if inter else 0.0


@given(given=boxes, wanted=boxes)
def test_iou_is_the_written_rule(given, wanted):
    record = Record(uid="u", source="f:1", images=("a",), question="q", targets=(Target(wanted),))
    text = f"<answer>({given[0]},{given[1]}),({given[2]},{given[3]})</answer>"
    found = score([text], [record], {"iou": 1.0}).parts["iou"][0]
    assert 0 <= found <= 1 and found == pytest.approx(literal_iou(given, wanted), abs=1e-6)


def test_an_unknown_term_is_named():
    with pytest.raises(ValueError, match=r"terms: expected some of iou, .* or FILE.py:FUNCTION, got iou, lenght"):
        score(["a"], [RECORD], {"iou": 1.0, "lenght": 1.0})


def test_a_record_without_a_box_is_named():
    with pytest.raises(ValueError, match=r"record v \(f:7\) has no box"):
        score(["a"], [Record(uid="v", source="f:7", images=("a",), question="q")], WEIGHTS)


def test_as_many_texts_as_records():
    with pytest.raises(ValueError, match="a record for each of the 2 texts, got 1"):
        score(["a", "b"], [RECORD], WEIGHTS)


@pytest.mark.parametrize(
    "text",
    [
        "<think>" * 60_000,
        "</think>" * 60_000,
        "</think>" + " " * 400_000,
        "<think></think><answer>(1," + " " * 400_000,
        "<answer>" + "(1,2),(" * 60_000,
        "<answer>" + "(" + "1" * 400_000 + "</answer>",
        "<think>" + "</think><answer>(1,2),(3,4)</answer> " * 12_000,
    ],
    ids=lambda text: text[:20],
)
def test_hostile_texts_take_linear_time(text):
    assert within(0.25, lambda: score([text], [RECORD], WEIGHTS))
    assert is_linear(lambda end: score([text[:end]], [RECORD], WEIGHTS), len(text) // 8, len(text))


REWARDS = {name: (recipe["terms"], recipe["parser"]) for name, recipe in RECIPES.items()}
REWARDS |= {name: ({name: 1.0}, "strict") for name in TERMS}


@pytest.mark.parametrize("reward", REWARDS)
def test_ten_thousand_completions_of_256_tokens_in_50_ms(reward):
    """By each recipe and each term: bench/cases/completions.py measures the same."""
    think = "The cup in the first image is left of the plate; in Image-2 it stands by the window (half way). " * 10
    texts = [f"<think>{think[:900]}</think>\n{text.removeprefix('<think>a</think>')}" for text, _, _ in GOLDEN] * 1250
    two = Record(uid="u", source="f:1", images=("a", "b"), question="q", targets=(Target(GT, 1),))
    (terms, parser), records, lengths = REWARDS[reward], [RECORD, two] * 5000, [256] * 10_000

    assert within(0.05, lambda: score(texts, records, terms, Settings(parser=parser), lengths))
