"""Texts in a model family's numbers and back: every box arrives in its image's unit, and nothing else changes."""

from __future__ import annotations

import json
import random
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rewards.adversarial import completions

from univg_fast.data.boxtext import boxes_in, placed
from univg_fast.data.coordinates import extents, smart_resize
from univg_fast.data.modeltext import from_model, to_model
from univg_fast.data.records import read_records
from univg_fast.data.samples import make_processor, make_sample
from univg_fast.rewards import score
from univg_fast.rewards.parse import parse
from univg_fast.structs import Record, Target

TALL = ((644, 476), (308, 504))  # sizes that the resize leaves as they are
WHOLE = (Target((0, 0, 1000, 1000), 1),)


@pytest.mark.parametrize("size", [(60, 40), (700, 500), (1999, 333)])
def test_a_pixel_familys_texts_refer_to_the_patches_that_are_made(folder, tokenizer, size):
    """Question and target of a sample in pixels of the resized image, equal to the grid's; read back to 0-1000."""
    Image.new("RGB", size).save(folder.path / "b.png")
    question = "<image><image>Not in the second image <|box_start|>(100,200),(300,400)<|box_end|> but (1,2),(3,4)?"
    row = folder.stage1(question, "It is in image 2. <|box_start|>(0,0),(500,250)<|box_end|>")
    (record,), _ = read_records(folder.jsonl(row))
    processor = make_processor(tokenizer, coordinates="resized")
    sample = make_sample(record, processor, with_response=True)
    assert sample.resized[1] == smart_resize(size) == tuple(14 * int(n) for n in sample.image_grid_thw[1][:0:-1])
    width, height = sample.resized[1]
    prompt, response = tokenizer.decode(sample.prompt_ids), tokenizer.decode(sample.response_ids)
    asked, kept = boxes_in(prompt, 2)[:2]
    assert kept.numbers == (1, 2, 3, 4)
    assert np.allclose(asked.numbers, [0.1 * width, 0.2 * height, 0.3 * width, 0.4 * height], atol=0.5)
    there = from_model(response, "resized", sample.sizes, sample.resized, record.targets)
    assert np.allclose(boxes_in(there, 2)[0].numbers, record.box, atol=max(1, 1000 / min(sample.resized[1])))
    assert re.sub(r"\d+", "", there) == re.sub(r"\d+", "", response)
    plain = make_sample(record, make_processor(tokenizer), with_response=True)
    assert "(100,200),(300,400)" in tokenizer.decode(plain.prompt_ids)


def test_only_the_numbers_of_boxes_change():
    """White space decides whether a strict format is right; every box is counted in 0-1000, whatever box it is."""
    sizes, resized = [(60, 40)], [(84, 56)]
    text = "It is at 3. <answer>( 42 , 14),(84,\n56)</answer> [ 0,0,42, 28.0] (168,-14),(84,14) (84,56),(42,14)"
    expected = (
        "It is at 3. <answer>( 500 , 250),(1000,\n1000)</answer> [ 0,0,500, 500.0] (2000,-250),(1000,250)"
        " (1000,1000),(500,250)"
    )
    assert from_model(text, "resized", sizes, resized) == expected
    assert from_model(text, "norm1000", sizes, resized) == text
    assert to_model("(500,250),(1000,1000)", "resized", sizes, resized) == "(42,14),(84,56)"
    assert from_model(text, "resized", (), ()) == text, "without images there is nothing to count in"


def iou_of(text: str, targets: tuple[Target, ...]) -> float:
    record = Record(uid="u", source="f:1", images=("a", "b"), question="?", targets=targets)
    (ours,) = score([from_model(text, "resized", TALL, TALL, targets)], [record], {"iou": 1.0}).total
    (own,) = score([text], [record], {"iou": 1.0}, extents=[extents("resized", TALL, TALL)]).total
    assert ours == pytest.approx(own, abs=2e-3)
    return float(own)


@pytest.mark.parametrize(
    ("over", "expected"),
    [(0, 1.0), (1, 308 / 309), (4, 308 / 312), (308, 0.5), (10**12, 0.0), (-308, 0.0), (-154, 0.5)],
)
def test_a_box_that_leaves_its_image_loses_what_it_is_too_large(over, expected):
    """And no more: its numbers are not taken for thousandths. (The width is right at 308.)"""
    text = f"<think>There.</think>\n<answer>(0,0),({max(0, 308 + over)},504)</answer>"
    assert iou_of(text, WHOLE) == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("think", ["", "In Image-1 there is a cat.", "Not the first image, the second one.", "Image-2"])
def test_what_is_thought_about_does_not_move_the_answer(think):
    """A box that names no image is the target's, whichever image was mentioned before."""
    text = f"<think>{think}</think>\n<answer>(0,0),(308,504)</answer>"
    assert iou_of(text, WHOLE) == 1.0
    taught = f"<think>{think}</think>\n<answer>(0,0),(1000,1000)</answer>"
    assert to_model(taught, "resized", TALL, TALL, targets=WHOLE) == text
    open_label = f'<think>{think}"label": "a</think><answer>(0,0),(308,504)</answer> "'
    assert iou_of(open_label, WHOLE) == 1.0, "a label reaches over no tag"
    assert (
        from_model("<think>(0,0),(308,504)</think>", "resized", TALL, TALL, WHOLE) == "<think>(0,0),(1000,1000)</think>"
    )


def test_a_samples_target_is_in_its_own_images_pixels(folder, tokenizer):
    for name, size in zip(("a.png", "b.png"), TALL, strict=True):
        Image.new("RGB", size).save(folder.path / name)
    response = "<think>In image 1 is a cat.</think><answer>(0,0),(1000,1000)</answer>"
    (record,), bad = read_records(folder.jsonl(folder.stage1(response=response, target_image=1)))
    sample = make_sample(record, make_processor(tokenizer, coordinates="resized"), with_response=True)
    assert not bad and "<answer>(0,0),(308,504)</answer>" in tokenizer.decode(sample.response_ids)


@pytest.mark.parametrize(
    ("text", "images"),
    [
        ("(1,2),(3,4) (1,2),(3,4)", [1, 0]),
        ("<answer>Image-1: (1,2),(3,4)\nImage-1: (1,2),(3,4)</answer>", [0, 0]),
        ("(5,6),(7,8) <answer>(1,2),(3,4) (1,2),(3,4) (1,2),(3,4)</answer>", [1, 1, 0, 1]),
        ("in Image-1 (5,6),(7,8)</think>(1,2),(3,4)", [0, 1]),
        ("no image of these: Image-7 (1,2),(3,4)", [1]),
    ],
)
def test_boxes_without_an_image_have_those_of_the_targets_in_their_order(text, images):
    assert [box.image for box in placed(text, 2, (1, 0))] == images
    assert (
        {box.image for box in placed("(1,2),(3,4)", 2)}
        == {box.image for box in placed("(1,2),(3,4)", 2, [None])}
        == {0}
    )


@pytest.mark.parametrize(
    "text",
    [
        "picture 2: {}", "Photo 2 {}", "the second-picture {}", "in frame_2 {}", "IMAGE 2 {}", "2nd photo: {}",
        '[{{"bbox_2d": [0,0,308,504],"img":2}}]', '{{"image_idx": "Image-2", "bbox_2d": [0, 0, 308, 504]}}',
    ],
)  # fmt: skip
@pytest.mark.parametrize("box", ["(0,0),(308,504)", "(0,0,308,504)", "(0, 0) (308, 504)", "<box>0 0 308 504</box>"])
def test_the_image_and_the_box_that_are_scored_are_those_that_are_converted(text, box):
    text = text.format(box)
    (found,) = parse(from_model(text, "resized", TALL, TALL), mode="lenient").boxes
    assert found.box == (0, 0, 1000, 1000) and found.image == 1
    assert boxes_in(text, 2)[0].image == 1


@pytest.mark.parametrize("seed", range(3))
def test_the_parser_finds_the_boxes_that_are_converted(seed):
    """One grammar: what the lenient parser reads in any text is what is rewritten there."""
    texts = [text for text, _ in zip(completions(seed), range(2000), strict=False) if "answer>" not in text]
    texts = [text.replace("</think>", "") for text in texts]
    for text in texts:
        found = [tuple(box.numbers) for box in boxes_in(text, 9)]
        assert found == [tuple(target.box) for target in parse(text, mode="lenient").boxes][: len(found)]
        there = boxes_in(from_model(text, "resized", [(500, 250)], [(500, 250)]), 9)
        assert len(there) == len(found)
        for (x1, y1, x2, y2), box in zip(found, there, strict=True):
            assert (
                np.allclose(box.numbers, (2 * x1, 4 * y1, 2 * x2, 4 * y2), atol=1, rtol=1e-6)
                or max(x1, x2, y1, y2) > 1e8
            )
    assert sum(bool(boxes_in(text, 9)) for text in texts) > 300


@given(box=st.tuples(*[st.integers(0, 1000)] * 4), at=st.integers(0, 1), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=200)
def test_a_target_comes_back_to_one_unit(box, at, seed):
    """Also one that is inverted or without area, in every spelling."""
    draw = random.Random(seed)
    sizes = [(draw.randrange(28, 3000), draw.randrange(28, 3000)) for _ in range(2)]
    sizes = [(max(w, h // 100 + 1), max(h, w // 100 + 1)) for w, h in sizes]
    resized = [smart_resize(size) for size in sizes]
    x1, y1, x2, y2 = box
    targets = (Target((0, 0, 1, 1), at),)
    for text in (f"<answer>({x1},{y1}),({x2},{y2})</answer>", json.dumps([{"bbox_2d": box, "image": at + 1}])):
        back = from_model(
            to_model(text, "resized", sizes, resized, targets=targets), "resized", sizes, resized, targets
        )
        unit = [max(1, 1000 / side) for side in resized[at] * 2]
        assert all(abs(a - b) <= u for a, b, u in zip(boxes_in(back, 2)[0].numbers, box, unit, strict=True))
        assert re.sub(r"\d+", "", back) == re.sub(r"\d+", "", text)
