"""Completions of a model that counts in pixels: boxes are scored in 0-1000, forms as the model wrote them."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
from rewards.adversarial import completions
from speed import within
from univg_kernels.scan_boxes import scan_boxes

from univg_fast.data.coordinates import extents
from univg_fast.data.modeltext import from_model
from univg_fast.rewards import Answers, Settings, score
from univg_fast.rewards.units import in_thousandths
from univg_fast.structs import Record, Target

SIZES = ((1288, 952), (924, 1512))
RESIZED = ((644, 476), (308, 504))
ENDS = extents("resized", SIZES, RESIZED)
THINK = "<think>a</think><answer>{}</answer>"


def record(*images: int | None) -> Record:
    return Record("u", "f:1", ("a", "b"), "q", tuple(Target((0, 0, 1000, 1000), image) for image in images))


@pytest.mark.parametrize(
    ("body", "images", "found"),
    [
        ("(0,0),(308,504)", (1,), [1]),
        ("(0,0),(308,504)", (None,), [0]),
        ("(0,0),(308,504)", (), [0]),
        ("Image-2: (0,0),(308,504)", (0,), [1]),
        ("Image-3: (0,0),(308,504)", (1,), [1]),
        ("Image-0: (0,0),(308,504)", (1,), [1]),
        ("(0,0),(1,1) (0,0),(2,2) (0,0),(3,3)", (1, 0), [1, 0, 1]),
        ("(0,0),(1,1) Image-1: (0,0),(2,2) (0,0),(3,3)", (1, None, 0), [1, 0, 0]),
        ("(0,0),(1,1) (0,0),(2,2)", (None, 1), [0, 1]),
    ],
)
def test_the_image_whose_pixels_are_counted(body: str, images: tuple[int | None, ...], found: list[int]) -> None:
    """That which is named, else that of the target in its place, else the first target's, else the first."""
    texts, records = [THINK.format(body), THINK.format("no")], [record(*images), record(1)]
    read = scan_boxes(texts, mode="strict")
    wide = np.array([RESIZED[i] for i in found]) / 1000
    boxes = in_thousandths(read, records, [ENDS, ENDS])
    assert np.allclose(boxes * np.tile(wide, 2), read.boxes.numpy(), rtol=1e-15)


def test_forms_and_boxes_are_those_of_the_text_in_0_to_1000() -> None:
    """What `from_model` writes for people and files, up to its rounding, where both know the images."""
    texts, wanted, compared = list(islice(completions(8), 6000)), record(1, 0), 0
    texts = [t for t in texts if "<answer>" not in t or t.rfind("</think>") < t.rfind("<answer>")]
    texts = [t for t in texts if not t.partition("</answer>")[2]]  # of which the parser reads nothing
    for mode in ("lenient", "strict"):
        own = Answers(texts, [wanted] * len(texts), Settings(parser=mode), extents=[ENDS] * len(texts))
        rewritten = [from_model(text, "resized", SIZES, RESIZED, wanted.targets) for text in texts]
        theirs = Answers(rewritten, own.records, own.settings)
        for mine, other in zip(own.found[:4], theirs.found[:4], strict=True):
            assert torch.equal(mine, other)
        named = own.found.images.numpy()  # a number that no image has is passed over there
        known = (named > -2) & (named < 2) & (own.given.boxes < 1e8).all(1) & (mode == "lenient")
        assert np.allclose(own.given.boxes[known], theirs.given.boxes[known], atol=1)
        compared += int(known.sum())
    assert compared > 1000


@pytest.mark.parametrize(
    "body", ["(10.3,20.4),(100.2,200.1)", "(-0.2,20),(100,200)", "(0,0),(-1,200)", "(1,2),(3,4.0)"]
)
def test_what_is_no_form_stays_none(body: str) -> None:
    """Rounding a number to 0-1000 takes neither its point nor its sign away."""
    text, wanted = THINK.format(body), record(1)
    terms = {"format": 1.0, "format_strict": 1.0}
    for own in (text, from_model(text, "resized", SIZES, RESIZED, wanted.targets)):
        assert score([own], [wanted], terms, extents=[ENDS]).total[0] == 0
    right = THINK.format("(0,0),(308,504)")
    assert score([right], [wanted], terms | {"iou": 1.0}, extents=[ENDS]).total[0] == 3


def test_what_was_thought_of_names_no_image_of_the_answer() -> None:
    """For every parser as docs/data.md says it: neither is the box counted in that image nor scored there."""
    for think in ("The target is in Image-1.", "Not the first image.", "Image-1", "image 9"):
        text = f"<think>{think}</think><answer>(0,0),(308,504)</answer>"
        for parser in ("lenient", "strict"):
            scores = score([text], [record(1)], dict.fromkeys(("matching", "iou", "image_set"), 1.0),
                           Settings(parser=parser), extents=[ENDS])  # fmt: skip
            assert [float(part[0]) for part in scores.parts.values()] == [1.0, 1.0, 0.0], (think, parser)


def test_a_part_of_answers_keeps_what_belongs_to_it() -> None:
    texts = [THINK.format(f"(0,0),(308,{n})") for n in (504, 252, 126)]
    answers = Answers(texts, [record(1)] * 3, Settings("strict"), np.array([1, 2, 3]), [ENDS] * 3)
    assert answers.part(1, 3).given.boxes.tolist() == [[0, 0, 1000, 500], [0, 0, 1000, 250]]
    assert answers.part(1, 3).lengths.tolist() == [2, 3] and answers.part(0, 1).settings == answers.settings


def test_a_number_of_extents_that_is_not_that_of_the_texts() -> None:
    with pytest.raises(ValueError, match="score: expected extents for each of the 1 texts, got 2"):
        score(["a"], [record(1)], {"format": 1.0}, extents=[ENDS] * 2)


def test_a_form_needs_no_boxes_of_the_record_and_no_images() -> None:
    assert score([THINK.format("(1,2),(3,4)")], [record()], {"format": 1.0}, extents=[[]]).total[0] == 1


def test_ten_thousand_completions_in_30_ms() -> None:
    think = "The cup in the first image is left of the plate; in Image-2 it stands by the window (half way). " * 10
    texts = [f"<think>{think[:900]}</think><answer>(0,{i % 90}),(308,504)</answer>" for i in range(10_000)]
    records = [record(1)] * 10_000
    found = scan_boxes(texts)
    assert within(0.03, lambda: in_thousandths(found, records, [ENDS] * 10_000))
