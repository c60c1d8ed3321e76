"""Characters beyond ASCII: digits and white space of all scripts, labels as they are, and no time lost on them."""

from __future__ import annotations

import unicodedata

import pytest
from rewards.faces import differing
from speed import within
from univg_kernels import distinct_runs
from univg_kernels.scan_boxes import scan_boxes

from univg_fast.config.reward_recipes import RECIPES
from univg_fast.rewards import Settings, parse, score
from univg_fast.structs import Record, Target

RECORD = Record("u", "f:1", ("a", "b"), "q", (Target((100, 200, 300, 400), 1),))
CUP = "The cup in the first image is left of the plate; in Image-2 it stands by the window (half way). " * 10
TEXTS = {
    "one é": f"{CUP[:500]}é{CUP[500:900]}",
    "quotes": ("The \u201cred\u201d cup\u2019s plate \u2014 in Image-2 it stands by the window (half way). " * 13)[
        :900
    ],
    "Chinese": "\u676f\u5b50\u5728\u76d8\u5b50\u5de6\u8fb9\uff0c\u7b2c\uff12\u5f20\u91cc\u5b83\u5728\u7a97\u6237\u3002"
    * 18,
    "NBSP": CUP[:900].replace(" ", "\u00a0", 60),
}


@pytest.mark.parametrize(
    ("text", "image"),
    [
        ("first image２[1,2,3,4]", 1),  # a digit of any script belongs to the word before it: image 2, not the first
        ("２Image-1[1,2,3,4]", None),
        ("Image-1２[1,2,3,4]", 11),
        ("the ２nd image [1,2,3,4]", 1),
        ("image\u00a02 [１,２,３,４]", 1),
        ("中image 2[1,2,3,4]", 1),  # a letter beyond ASCII does not
        ("²Image-1[1,2,3,4]", 0),  # is no digit to either
        ('{"image": "２", "bbox_2d": [1,2,3,4]}', 1),
    ],
)
def test_digits_and_spaces_of_all_scripts(text: str, image: int | None) -> None:
    (found,) = parse(text, mode="lenient").boxes
    assert found == Target((1, 2, 3, 4), image)
    assert not differing([text], "lenient", ["univg_r1"], [True])


@pytest.mark.parametrize(
    ("label", "style"),
    [
        ("iPhone\uff11\uff12", "bbox_2d"),
        ("a\u00a0b\u3000\u0663", "bbox_2d"),
        ("\uff11", "box_tokens"),
        ("\u732b\uff12\u53f7 \u00e9", "box_tokens"),
    ],
)
def test_labels_are_as_they_are_written(label: str, style: str) -> None:
    """Behind other characters that are read as those of ASCII."""
    json = (
        f'[{{"bbox_2d": [\uff11,\u00a02,3,4],\u3000"label": "{label}"}}, {{"label": "b", "bbox_2d": [5,6,7,\uff18]}}]'
    )
    tokens = f"<|object_ref_start|>{label}<|object_ref_end|>\u00a0(\uff11,2),(3,4)\u3000(5,6),(7,\uff18)"
    text = f"<think>\u00a0\uff19</think>\u3000<answer>{json if style == 'bbox_2d' else tokens}</answer>"
    for mode in ("strict", "lenient"):
        first, second = parse(text, style, mode).boxes
        assert first == Target((1, 2, 3, 4), None, label) and second.box == (5, 6, 7, 8)
        assert not differing([text], mode, [style], [True])


def test_every_character_is_read_by_both_faces_as_python_has_it() -> None:
    """Those that this Python's Unicode knows; the table of C++ may be younger."""
    known = [chr(c) for c in range(128, 0x110000) if unicodedata.category(chr(c)) != "Cn"]
    texts = [f"({c}1,{c}2),({c}3,4{c})" for c in known]
    found = scan_boxes(texts, mode="lenient")
    assert found.counts.tolist() == [int(c.isdecimal() or c.isspace()) for c in known]
    tens = [10.0 * int(c) if c.isdecimal() else 0.0 for c in known if c.isdecimal() or c.isspace()]
    last = [40.0 + int(c) if c.isdecimal() else 4.0 for c in known if c.isdecimal() or c.isspace()]
    wanted = [[ten + 1, ten + 2, ten + 3, four] for ten, four in zip(tens, last, strict=True)]
    assert found.boxes.tolist() == wanted and sum(map(str.isdecimal, known)) > 600
    words = distinct_runs([f"a{c}b" for c in known], 1)
    assert words[:, 1].tolist() == [2 if c.isspace() else 1 for c in known]


def test_the_key_of_a_box_has_a_digit_of_ascii() -> None:
    for key in ("bbox_\uff12d", "bbox_\uff12\uff12d", "\uff12bbox_2d"):
        text = f'<think>a</think><answer>[{{"{key}": [1, 2, 3, 4]}}]</answer>'
        assert not parse(text, "bbox_2d").boxes
        assert not differing([text], "strict", ["bbox_2d"], [True])


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("recipe", ["univg_r1", "mirg_rl"])
def test_ten_thousand_completions_of_256_tokens_in_50_ms(text: str, recipe: str) -> None:
    """As of ASCII (test_rewards.py)."""
    texts = [f"<think>{TEXTS[text]} {i}</think>\n<answer>(100,200),(300,{i})</answer>" for i in range(10_000)]
    terms, parser = RECIPES[recipe]["terms"], RECIPES[recipe]["parser"]
    assert within(0.05, lambda: score(texts, [RECORD] * 10_000, terms, Settings(parser=parser)))
