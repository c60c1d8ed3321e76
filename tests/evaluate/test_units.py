"""Answers of a model that counts in pixels of the resized image: scored as it wrote them, and kept so."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import pytest

from univg_fast.evaluate.benchmarks import RECORDS
from univg_fast.evaluate.items import Item, Truth
from univg_fast.evaluate.journal import Journal
from univg_fast.evaluate.parsers import PARSERS
from univg_fast.evaluate.predictions import Prediction, read_predictions
from univg_fast.evaluate.score import score
from univg_fast.predict.questions import described

SIZES = ((1288, 952), (300, 100))
RESIZED = ((644, 476), (308, 112))
ITEM = Item("a", "f:1", "t", ("a.png", "b.png"), "Where is (1,2),(30,40)?", (Truth((10, 10, 30, 20), 0),))


def said(text: str) -> Prediction:
    return Prediction(text, None, 7, sizes=SIZES, resized=RESIZED)


def exact(box: tuple[int, ...], truth: tuple[int, ...], size: tuple[int, int]) -> float:
    a = [Fraction(1000 * v, side) for v, side in zip(box, size * 2, strict=True)]
    common = (min(a[2], truth[2]) - max(a[0], truth[0])) * (min(a[3], truth[3]) - max(a[1], truth[1]))
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (truth[2] - truth[0]) * (truth[3] - truth[1])
    return float(common / (areas - common))


@pytest.mark.parametrize("parser", ["answer_tag", "univg_r1", "migician"])
def test_the_iou_is_that_of_the_box_as_written(parser: str) -> None:
    (row,) = score([ITEM], {"a": said("<answer>(7,5),(18,9)</answer>")}, RECORDS, PARSERS[parser])
    assert row["iou"] == pytest.approx(exact((7, 5, 18, 9), (10, 10, 30, 20), RESIZED[0]), abs=1e-12)
    assert row["text"] == "<answer>(11,11),(28,19)</answer>"  # for people


def test_each_box_lies_in_the_image_that_it_names_and_the_questions_has_its_own_unit() -> None:
    text = "<think>(7,5),(18,9)</think><answer>Image-2: (77,28),(154,56)\nImage-1: (322.5,0),(644,119)</answer>"
    found = described(ITEM, said(text))
    assert [(one["image"], one["box"]) for one in found["boxes"]] == [
        (2, [250, 250, 500, 500]),
        (1, [500.8, 0, 1000, 250]),
    ]
    assert found["boxes"][0]["box_px"] == [75, 25, 150, 50]
    (row,) = score([ITEM], {"a": said("(7,5),(18,9)")}, RECORDS, PARSERS["univg_r1_zero_shot"])
    assert row["box"] == [1, 2, 30, 40]


def test_what_the_model_wrote_is_kept_and_scored_again_alike(tmp_path: Path) -> None:
    answer = said("<answer>(7,5),(18,9)</answer>")
    first = Journal(tmp_path, {})
    first.open(0)
    first.add([(ITEM, answer)])
    first.close()
    assert Journal(tmp_path, {}).answers == {"a": answer}
    path = tmp_path / "answers.0.jsonl"
    assert read_predictions(path, [ITEM])[0] == {"a": answer}
    settings, line = map(json.loads, path.read_text().splitlines())
    del line["resized"]
    path.write_text(json.dumps(settings) + "\n" + json.dumps(line) + "\n")
    with pytest.raises(ValueError, match=r"answers\.0\.jsonl holds answers of an older form"):
        Journal(tmp_path, {})


def test_sizes_of_a_file_are_those_of_all_images(tmp_path: Path) -> None:
    path = tmp_path / "said.jsonl"
    line = {"id": "a", "text": "<answer>(7,5),(18,9)</answer>"}
    for resized, wrong in (([[644, 476], [308, 112]], None), ([[644, 476]], "a: resized: expected the size of each")):
        path.write_text(json.dumps(line | {"resized": resized}))
        predictions, _ = read_predictions(path, [ITEM])
        if wrong:
            with pytest.raises(ValueError, match=wrong):
                score([ITEM], predictions, RECORDS, PARSERS["answer_tag"])
        else:
            (row,) = score([ITEM], predictions, RECORDS, PARSERS["answer_tag"])
            assert row["iou"] == pytest.approx(exact((7, 5, 18, 9), (10, 10, 30, 20), RESIZED[0]), abs=1e-12)
