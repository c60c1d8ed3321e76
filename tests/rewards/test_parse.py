"""The parser's modes and styles by hand, and its two faces against each other."""

from __future__ import annotations

import re
from itertools import islice
from typing import Any

import pytest
import torch
from rewards.adversarial import completions
from rewards.faces import differing
from univg_kernels import _library
from univg_kernels.scan_boxes import MODES, STYLES, scan_boxes

from univg_fast.data.prompts import answer_text, target_text
from univg_fast.rewards import parse
from univg_fast.structs import Record, Target

THINK = "<think>a (9,9),(9,9) in Image-5</think>\n"
CAT, DOG = Target((1, 2, 3, 4), 1, "cat"), Target((5, 6, 7, 8), 0, "dog")


def boxes(text: str, mode: str, style: str = "univg_r1", cot: bool = True) -> list[tuple[Any, ...]]:
    return [(*target.box, target.image, target.label) for target in parse(text, style, mode, cot).boxes]


@pytest.mark.parametrize("cot", [True, False])
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("targets", [(CAT,), (CAT, DOG), (DOG, CAT, CAT)])
def test_what_the_data_teaches_is_strict(targets: tuple[Target, ...], style: str, cot: bool) -> None:
    """The texts that stage 1 learns are parsed to the targets that they were made of."""
    record = Record("u", "f:1", ("a", "b"), "q", targets, cot=cot, answer_style=style)
    answer = parse(target_text(record, think="so" if cot else None), style, "strict", cot)
    assert answer.strict and answer.count == len(targets) and answer.tags == (4 if cot else 0)
    assert [target.box for target in answer.boxes] == [target.box for target in targets]
    if len(targets) > 1 or style == "bbox_2d":
        assert [target.image for target in answer.boxes] == [target.image for target in targets]
    if style == "bbox_2d":
        assert [target.label for target in answer.boxes] == [target.label for target in targets]
    assert parse(answer_text(targets, style), style, "lenient", cot).boxes == answer.boxes


@pytest.mark.parametrize(
    ("body", "style", "right"),
    [
        ("(1,2),(3,4)", "univg_r1", True),
        (" (1, 2), (3,4) ; Image-2: (1,2),(3,4)\n", "univg_r1", True),
        ("Image-2 (1,2),(3,4)", "univg_r1", True),
        ("the box (1,2),(3,4)", "univg_r1", False),
        ("(1,2),(3,4).", "univg_r1", False),
        ("(1 ,2),(3,4)", "univg_r1", False),
        ("(-1,2),(3,4)", "univg_r1", False),
        ("", "univg_r1", False),
        ("Image-1234: (1,2),(3,4)", "univg_r1", False),
        ("<|box_start|>(1,2),(3,4)<|box_end|>", "univg_r1", False),
        ("<|box_start|>(1,2),(3,4)<|box_end|>", "box_tokens", True),
        ("<|object_ref_start|>cat<|object_ref_end|><|box_start|>(1,2),(3,4)<|box_end|>", "box_tokens", True),
        ("(1,2),(3,4)", "box_tokens", True),  # decoded without special tokens
        ("<|box_start|>(1,2),(3,4)", "box_tokens", False),
        ('[{"bbox_2d": [1,2,3,4]}]', "bbox_2d", True),
        ('{"bbox_2d": [1, 2.5, -3, 4], "score": 0.5, "ok": true}', "bbox_2d", True),
        ('```json\n[{"label": "a]}", "bbox_2d": [1,2,3,4]}]\n```', "bbox_2d", True),
        ('[{"bbox_2d": [1,2,3,4]},]', "bbox_2d", False),
        ('[{"bbox_2d": [1,2,3]}]', "bbox_2d", False),
        ('[{"bbox_2d": "[1,2,3,4]"}]', "bbox_2d", False),
        ('[{"label": "cat"}]', "bbox_2d", False),
        ('{"bbox_2d": [1,2,3,4]}, {"bbox_2d": [1,2,3,4]}', "bbox_2d", False),
        ('[{"bbox_2d": [1,2,3,4]}] done', "bbox_2d", False),
        ('[{"bbox_2d": [1,2,3,4], "label": cat}]', "bbox_2d", False),
        ("[1,2,3,4]", "bbox_2d", False),
        ("[]", "bbox_2d", False),
    ],
)
def test_the_strict_answer(body: str, style: str, right: bool) -> None:
    answer = parse(f"{THINK}<answer>{body}</answer>", style)
    assert answer.strict is right and bool(answer.boxes) is right


@pytest.mark.parametrize(
    ("text", "strict", "tags", "found"),
    [
        ("<think>a</think><answer>(1,2),(3,4)</answer>", True, 4, 1),
        (" \n<think>a</think> <answer>(1,2),(3,4)</answer>\n\n", True, 4, 1),
        ("so <think>a</think><answer>(1,2),(3,4)</answer>", False, 4, 1),
        ("<think>a</think><answer>(1,2),(3,4)</answer> done", False, 4, 1),
        ("<think>a</think> so <answer>(1,2),(3,4)</answer>", False, 4, 1),
        ("<think><think>a</think><answer>(1,2),(3,4)</answer>", False, 3, 1),
        ("<think>a</think><answer>(1,2),(3,4)</answer><answer>(1,2),(3,4)</answer>", False, 2, 0),
        ("<answer>(1,2),(3,4)</answer>", False, 2, 1),
        ("<answer>(1,2),(3,4)</answer><think>a</think>", False, 2, 1),
        ("</answer>(1,2),(3,4)<answer>", False, 1, 0),
        ("(1,2),(3,4)", False, 0, 0),
    ],
)
def test_the_strict_form(text: str, strict: bool, tags: int, found: int) -> None:
    answer = parse(text)
    assert (answer.strict, answer.tags, len(answer.boxes)) == (strict, tags, found)


def test_lenient_reads_what_people_write() -> None:
    read = {
        "(1, 2) (3, 4)": [(1, 2, 3, 4, None, None)],
        "it is [ 1 , 2.5, 3 , 4 ]": [(1, 2.5, 3, 4, None, None)],
        "(1,2,3,4)": [(1, 2, 3, 4, None, None)],
        "<box>1 2 3 4</box>": [(1, 2, 3, 4, None, None)],
        "(-1,2),(3,4)": [(-1, 2, 3, 4, None, None)],
        "The second image: (1,2),(3,4), the 3rd picture: (5,6),(7,8)": [(1, 2, 3, 4, 1, None), (5, 6, 7, 8, 2, None)],
        "It's in the third image. <|box_start|>(316,58),(764,999)<|box_end|>": [(316, 58, 764, 999, 2, None)],
        'x {"bbox_2d": [1,2,3,4], "label": "a\\"b", "img_idx": 2} and [5,6,7,8]': [
            (1, 2, 3, 4, 1, 'a"b'), (5, 6, 7, 8, None, None)
        ],
        "<think>(9,9),(9,9)</think> (1,2),(3,4)": [(1, 2, 3, 4, None, None)],
        "<answer>(9,9),(9,9)</answer> no: <answer>(1,2),(3,4)": [(1, 2, 3, 4, None, None)],
        "It is in Image-2: <answer>(1,2),(3,4)</answer>": [(1, 2, 3, 4, None, None)],  # said before the answer begins
        "<think>it is in Image-2</think> (1,2),(3,4)": [(1, 2, 3, 4, None, None)],
        "<answer>Image-2</think> (1,2),(3,4)": [(1, 2, 3, 4, None, None)],
        '"label": "a</think>(1,2),(3,4) "b"': [(1, 2, 3, 4, None, None)],  # a label reaches over no tag
        '{"label": "a\\</b><c", "bbox_2d": [1, 2, 3, 4]}': [(1, 2, 3, 4, None, "a\\</b><c")],
        "image 0 (1,2),(3,4) images 2 and 12345 images": [(1, 2, 3, 4, None, None)],
    }  # fmt: skip
    for text, want in read.items():
        assert boxes(text, "lenient") == want, text


# What the patterns of the two scripts do, by hand: (text, UniVG-R1's box, Migician's in thousandths).
LEGACY: list[tuple[str, Any, Any]] = [
    ("(1,2),(3,4)", (1, 2, 3, 4), (1, 2, 3, 4)),
    ("<think>(9,9),(9,9)</think><answer>(1,2),(3,4)</answer>", (9, 9, 9, 9), (9, 9, 9, 9)),
    ("[1, 2, 3, 4] then (5,6),(7,8)", (5, 6, 7, 8), (5, 6, 7, 8)),
    ("[0.3, 0.2, 0.4, 0.28]", None, (300, 200, 400, 280)),
    ("[28, 586, 362, 793] [0.3, 0.2, 0.4, 0.25]", None, (300, 200, 400, 250)),  # int('0.3') fails
    ("(0.1,0.2),(0.3,0.4)", None, (100, 200, 300, 400)),
    ("(0.1, 0.2),(0.3,0.4)", None, None),  # no white space in that pattern
    ("(0.1, 0.2, 0.3, 0.4)", None, (100, 200, 300, 400)),
    ("(1, 2, 3, 4)", None, None),
    ("[1,2,3,4] [5,6,7,8]", (1, 2, 3, 4), (1, 2, 3, 4)),
    ("<box>826 704 993 984</box>", (826, 704, 993, 984), (826, 704, 993, 984)),
    ("<box>826, 704, 993, 984</box>", None, None),
    ("[0.5, 1.0, 700.5, 2.25]", None, (500, 1, 700.5, 2.25)),
    ("(0,0),(0,1)", (0, 0, 0, 1), (0, 0, 0, 1)),
    ("", None, None),
]


@pytest.mark.parametrize(("text", "univg_r1", "migician"), LEGACY)
def test_the_evaluation_scripts(text: str, univg_r1: Any, migician: Any) -> None:
    for mode, want in (("univg_r1_eval", univg_r1), ("migician", migician)):
        found = boxes(text, mode)
        assert [box[:4] for box in found] == ([] if want is None else [pytest.approx(want)])


def test_univg_r1_s_rule_as_its_regular_expressions() -> None:
    """The literal rule (greedy, going back) on short random texts."""
    pair = r"\((\d+),\s*(\d+)\),\s*\((\d+),\s*(\d+)\)"
    form = re.compile(rf"<think>.*?</think>\s*<answer>{pair}</answer>$", re.DOTALL)
    texts = list(islice(completions(5), 20_000))
    found = scan_boxes(texts, mode="univg_r1")
    assert found.format.tolist() == [form.search(text) is not None for text in texts]
    counts = []
    for text in texts:
        answer = re.search(r"<answer>(.*?)</answer>", text, re.DOTALL)
        box = re.search(pair, answer[1]) if answer else None
        counts.append([min(int(x), 10**9) for x in box.groups()] if box else None)
    given = iter(found.boxes.tolist())
    assert [next(given) if n else None for n in found.counts.tolist()] == counts
    assert 1000 < sum(box is not None for box in counts) < 19_000


@pytest.mark.parametrize("mode", MODES)
def test_both_faces_read_the_same(mode: str) -> None:
    texts = list(islice(completions(6), 3000))
    for style in STYLES:
        for cot in (True, False):
            wrong = differing(texts, mode, [style] * len(texts), [cot] * len(texts))
            assert not wrong, wrong[0]


@pytest.mark.parametrize(
    ("text", "style", "mode", "image"),
    [
        ("<answer>Image-0: (1,2),(3,4)</answer>", "univg_r1", "strict", -2),
        ("<answer>Image-00 (1,2),(3,4)</answer>", "univg_r1", "strict", -2),
        ("<answer>(1,2),(3,4)</answer>", "univg_r1", "strict", -1),
        ('<answer>[{"bbox_2d": [1,2,3,4], "image": 0}]</answer>', "bbox_2d", "strict", -2),
        ('<answer>[{"bbox_2d": [1,2,3,4], "image": "Image-0"}]</answer>', "bbox_2d", "strict", -2),
        ('<answer>[{"bbox_2d": [1,2,3,4], "image": "none"}]</answer>', "bbox_2d", "strict", -1),
        ("image 0 (1,2),(3,4)", "univg_r1", "lenient", -2),
        ("the 0th picture (1,2),(3,4)", "univg_r1", "lenient", -2),
        ('Image-2: {"bbox_2d": [1,2,3,4], "img_idx": 0}', "univg_r1", "lenient", -2),  # its own word, wrong as it is
        ('Image-0: {"bbox_2d": [1,2,3,4], "img_idx": 2}', "univg_r1", "lenient", 1),
        ('Image-2: {"bbox_2d": [1,2,3,4], "label": "cat"}', "univg_r1", "lenient", 1),
        ("(1,2),(3,4) of image 0", "univg_r1", "lenient", -1),
    ],
)
def test_image_0_is_not_the_same_as_none(text: str, style: str, mode: str, image: int) -> None:
    for backend in ("cpp", "reference"):
        found = scan_boxes([text], mode=mode, styles=style, backend=backend)
        assert found.images.tolist() == [image] and found.boxes.tolist() == [[1, 2, 3, 4]]


def test_more_boxes_than_are_kept() -> None:
    text = f"<answer>{'(1,2),(3,4)' * 700}</answer>"
    for backend in ("cpp", "reference"):
        found = scan_boxes([text, text], backend=backend)
        assert found.counts.tolist() == [700, 700] and found.offsets.tolist() == [0, 512, 1024]


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="scan_boxes: mode must be one of 'univg_r1', 'strict', .*, got 'loose'"):
        parse("a", mode="loose")
    with pytest.raises(ValueError, match="scan_boxes: styles must be one of 'univg_r1', .*, got 'xml'"):
        parse("a", style="xml")
    with pytest.raises(ValueError, match="scan_boxes: cot must have one entry for each of 2 texts, got 1"):
        scan_boxes(["a", "b"], cot=[True])
    empty = scan_boxes([])
    assert empty.boxes.shape == (0, 4) and empty.offsets.tolist() == [0] and torch.equal(empty.counts, empty.images)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (0, torch.zeros(9)),
        (1, torch.tensor([0, 5, 99])),
        (1, torch.tensor([0, 9, 5])),
        (1, torch.tensor([-1, 3, 9])),
        (1, torch.tensor([0, 9])),
        (2, torch.tensor([0, 3])),
        (2, torch.tensor([0, 8])),
        (2, torch.tensor([0, -1])),
        (3, 5),
        (3, -1),
        (4, -1),
    ],
)
def test_the_op_itself_refuses_what_would_be_read_wrongly(place: int, value: Any) -> None:
    arguments: list[Any] = [torch.zeros(9, dtype=torch.uint8), torch.tensor([0, 4, 9]), torch.tensor([0, 4]), 1, 512]
    _library.load()
    torch.ops.univg_kernels.scan_boxes(*arguments)
    arguments[place] = value
    with pytest.raises(RuntimeError):
        torch.ops.univg_kernels.scan_boxes(*arguments)
