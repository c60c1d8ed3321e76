"""The other sets: pixels over image sizes and an epsilon, lmms-eval's conventions, several targets at once."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from scipy.optimize import linear_sum_assignment

from univg_fast.data.prompts import target_text
from univg_fast.evaluate.__main__ import main
from univg_fast.evaluate.benchmarks import RECORDS
from univg_fast.evaluate.items import Form, Item, Truth, item_of
from univg_fast.evaluate.parsers import PARSERS
from univg_fast.evaluate.predictions import Prediction
from univg_fast.evaluate.score import score
from univg_fast.structs import Record, Target


def run(folder: Path, benchmark: str, entries: list[Any], texts: dict[str, str], *more: str) -> dict[str, Any]:
    (folder / "data.json").write_text(json.dumps(entries))
    (folder / "said.jsonl").write_text("".join(json.dumps({"id": k, "text": v}) + "\n" for k, v in texts.items()))
    given = ["--benchmark", benchmark, "--data", str(folder / "data.json"), "--out", str(folder / "out")]
    assert main([*given, "--predictions", str(folder / "said.jsonl"), *more]) == 0
    rows = [json.loads(line) for line in (folder / "out" / "rows.jsonl").read_text().splitlines()]
    return json.loads((folder / "out" / "results.json").read_text()) | {"rows": {row["uid"]: row for row in rows}}


def fraction_iou(said: list[int], pixels: list[int], size: tuple[int, int], epsilon: float) -> float:
    """Of a box in thousandths and one in pixels, as UniVG-R1's zero-shot scripts say it."""
    box = [v / 1000 for v in said]
    truth = [pixels[0] / size[0], pixels[1] / size[1], pixels[2] / size[0], pixels[3] / size[1]]
    width = max(0, min(box[2], truth[2]) - max(box[0], truth[0]))
    height = max(0, min(box[3], truth[3]) - max(box[1], truth[1]))
    a, b = ((x[2] - x[0]) * (x[3] - x[1]) for x in (box, truth))
    return width * height / (a + b - width * height + epsilon)


def test_reasoning_sets_are_scored_in_fractions_with_an_epsilon(tmp_path: Path) -> None:
    size, pixels = (640, 427), [63, 40, 321, 333]
    Image.new("RGB", size).save(tmp_path / "a.png")
    Image.new("RGB", (100, 90)).save(tmp_path / "b.png")
    one = {"image_path": "a.png", "instruction": "what flies", "boxes": [pixels, [0, 0, 9, 9]]}
    texts = {"0": "<answer>(90,100),(510,770)</answer>", "1": "<answer>(98,93),(502,780)</answer>", "2": "no"}
    result = run(tmp_path, "lisa_val", [one] * 4, texts)
    want = [fraction_iou(box, pixels, size, 1e-6) for box in ([90, 100, 510, 770], [98, 93, 502, 780])]
    assert [row["iou"] for row in result["rows"].values()] == [*want, 0.0, 0.0]
    assert result["miou"] == math.fsum(want) / 4 and result["acc@0.5"] == 0.5 and list(result["tasks"]) == ["lisa_val"]
    legacy = {"0": "<think>(0 , 0),( 9,9 )</think><answer>(90,100),(510,770)</answer>"}
    read = run(tmp_path, "lisa_val", [one], legacy, "--parser", "univg_r1_zero_shot")["rows"]["0"]
    assert read["box"] == [0, 0, 9, 9]  # the first pair of corners, also of a thought

    seen = {
        "image_list": ["b.png", "b.png", "a.png"],
        "question": "who runs",
        "bbox_list": ["", "", "63.9, 40, 321, 333"],
    }
    row = run(tmp_path, "reasonvos", [seen], {"0": texts["0"]})["rows"]["0"]
    assert row["iou"] == want[0] and row["target_image"] == 2

    gone = run(tmp_path, "llmseg", [{"image_path": "no.png", "question": "x", "bbox": [pixels]}], {"0": texts["0"]})
    assert gone["n"] == 1 and gone["miou"] == 0 and "no.png" in gone["data"]["examples"]["bad_entries"][0]
    sized = {"image_path": "no.png", "question": "x", "bbox": [pixels], "width": 640, "height": 427}
    assert run(tmp_path, "llmseg", [sized], {"0": texts["0"]})["miou"] == want[0]  # an image is not needed to score


def test_refcoco_by_lmms_eval_s_conventions(tmp_path: Path) -> None:
    entry = {
        "question_id": 7,
        "image": "gone.jpg",
        "width": 200,
        "height": 100,
        "bbox": [20, 10, 100, 50],
        "answer": ["a", "b", "c"],
    }
    texts = {
        "7.0": "it is [0.1, 0.1, 0.6, 0.6]",
        "7.1": "[ 0.1,0.1, 0.6,0.3 ] [0.1, 0.1, 0.6, 0.6]",
        "7.2": "(100,100),(600,600)",
    }
    result = run(tmp_path, "refcoco", [entry], texts, "--parser", "lmms_eval")
    assert [round(row["iou"], 12) for row in result["rows"].values()] == [1.0, 0.4, 0.0]
    assert result["acc@0.1"] == pytest.approx(2 / 3) and result["acc@0.9"] == pytest.approx(1 / 3)
    assert result["center_acc"] == pytest.approx(2 / 3) and result["counts"]["no_box"] == 1
    corner = entry | {"bbox": [0, 0, 50, 50], "answer": "d"}
    zeros = run(tmp_path, "refcoco+", [corner], {"7": "nothing"}, "--parser", "lmms_eval")
    assert zeros["center_acc"] == 1 and zeros["miou"] == 0  # of zeros, as there
    ours = run(tmp_path, "refcocog", [entry | {"answer": "a"}], {"7": "<answer>(100,100),(600,600)</answer>"})
    assert ours["miou"] == pytest.approx(1) and ours["tasks"]["refcocog"]["n"] == 1


def test_several_targets_are_matched_within_their_images(tmp_path: Path) -> None:
    targets = [
        {"box": [0, 0, 100, 100], "image": 0},
        {"box": [100, 100, 300, 300], "image": 1},
        {"box": [0, 0, 50, 50], "image": 1},
    ]
    entry = {"id": "m", "task": "OT", "images": ["a.png", "b.png"], "question": "All of them.", "targets": targets}
    single = {"id": "s", "task": "MV", "images": ["a.png", "b.png"], "question": "It.", "targets": targets[1:2]}
    said = (
        "<think>x</think><answer>Image-2: (100,100),(300,300)\nImage-1: (0,0),(100,80)\nImage-1: (0,0),(50,50)\n"
        "Image-2: (600,600),(700,700)</answer>"
    )
    result = run(
        tmp_path, "multi_target", [entry, single], {"m": said, "s": "<answer>Image-1: (100,100),(300,300)</answer>"}
    )
    assert [row["iou"] for row in result["rows"].values()] == [0.8, 1.0, 0.0, 1.0]
    assert list(result["rows"]) == ["m#1", "m#2", "m#3", "s"] and result["tasks"]["OT"]["acc@0.5"] == 2 / 3
    sets = result["sets"]
    assert (sets["samples"], sets["targets"], sets["boxes"]) == (2, 4, 5)
    assert sets["precision@0.5"] == 3 / 5 and sets["recall@0.5"] == 3 / 4 and sets["f1@0.5"] == 6 / 9
    assert sets["count_acc"] == 0.5 and sets["all_right@0.5"] == 0.5
    told = result["images"]  # of the sample of one target
    assert (told["n"], told["acc"], told["acc@0.5"], told["oracle_image_acc@0.5"]) == (1, 0.0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("said", "faults"),
    [
        ("Image-2: (0,0),(100,100)\nImage-1: (200,200),(300,300)", ["unmatched", "unmatched"]),  # images swapped
        ("Image-1: (100,100),(0,0)\nImage-2: (200,200),(300,300)", ["inverted_box", None]),
        ("Image-1: (600,600),(700,700)", ["unmatched", "unmatched"]),
        ("nowhere", ["no_box", "no_box"]),
    ],
)
def test_a_target_without_a_box_says_why(tmp_path: Path, said: str, faults: list[str | None]) -> None:
    targets = [{"box": [0, 0, 100, 100], "image": 0}, {"box": [200, 200, 300, 300], "image": 1}]
    entry = {"id": "m", "images": ["a.png", "b.png"], "question": "Both.", "targets": targets}
    result = run(tmp_path, "multi_target", [entry], {"m": f"<answer>{said}</answer>"})
    assert [row["fault"] for row in result["rows"].values()] == faults and "images" not in result
    want = {kind: faults.count(kind) for kind in ("no_box", "inverted_box", "unmatched")}
    assert want.items() <= result["counts"].items() and want.items() <= result["tasks"]["unknown"]["counts"].items()


def test_boxes_without_a_text_may_be_several_and_name_images(tmp_path: Path) -> None:
    targets = [{"box": [0, 0, 100, 100], "image": 0}, {"box": [200, 200, 300, 300], "image": 1}]
    entry = {"images": ["a.png", "b.png"], "question": "Both.", "targets": targets}
    boxes = [[200, 200, 300, 300], [0, 0, 100, 100]]
    lines = [{"box": boxes, "image": [1, 0]}, {"box": boxes, "image": 1}, {"box": boxes}, {"box": [[1, 2], 3]}]
    (tmp_path / "data.json").write_text(json.dumps([entry | {"id": str(i)} for i in range(5)]))
    said = "".join(json.dumps({"id": str(i)} | line) + "\n" for i, line in enumerate(lines))
    journal = json.dumps({"settings": {}}) + "\n" + json.dumps({"uid": "4", "text": ""}) + "\n"  # of --model
    (tmp_path / "said.jsonl").write_text(journal + said)
    given = {"--data": tmp_path / "data.json", "--predictions": tmp_path / "said.jsonl", "--out": tmp_path / "out"}
    assert main(["--benchmark", "multi_target", *[str(word) for pair in given.items() for word in pair]]) == 0
    result = json.loads((tmp_path / "out" / "results.json").read_text())
    rows = [json.loads(line) for line in (tmp_path / "out" / "rows.jsonl").read_text().splitlines()]
    assert [row["iou"] for row in rows] == [1, 1, 0, 1, 0, 0, 0, 0, 0, 0]
    assert [row["format"] for row in rows] == [None] * 8 + [0.0] * 2 and result["format"] == 0.0
    assert result["counts"]["bad_box"] == 1 and result["predictions"]["without_id"] == 0
    assert result["predictions"]["lines"] == 5


@pytest.mark.parametrize("style", ["univg_r1", "bbox_2d", "box_tokens"])
@pytest.mark.parametrize("several", [False, True])
def test_the_target_itself_has_the_form_that_was_asked_for(style: Any, several: bool) -> None:
    targets = (Target((1, 2, 300, 400), 0), Target((5, 6, 700, 800), 1))[: 1 + several]
    record = Record("a", "f:1", ("a.png", "b.png"), "Where?", targets, answer_style=style, names_images=True)
    right, wrong = Prediction(target_text(record, "so")), Prediction("(1,2),(300,400)")
    for said, form in ((right, 1.0), (wrong, 0.0)):
        rows = score([item_of(record)], {"a": said}, RECORDS, PARSERS["answer_tag"])
        assert {row["format"] for row in rows} == {form}
    assert {row["iou"] for row in score([item_of(record)], {"a": right}, RECORDS, PARSERS["answer_tag"])} == {1.0}
    asked = Item("a", "f:1", "t", ("a.png", "b.png"), "Where?", (Truth((1, 2, 300, 400), 0),))
    if not several:  # an entry of a benchmark is asked as the run's configuration says
        (row,) = score([asked], {"a": right}, RECORDS, PARSERS["answer_tag"], Form(style, True))
        assert row["format"] == 1.0


def test_the_matching_of_many_is_the_best_one(tmp_path: Path) -> None:
    import numpy as np

    from univg_fast.evaluate.metrics import iou

    rng = np.random.default_rng(0)
    low = rng.integers(0, 600, (2, 7, 2))
    boxes = np.concatenate([low, low + rng.integers(100, 400, (2, 7, 2))], -1).tolist()
    entry = {"id": "m", "images": ["a.png"], "question": "All.", "targets": [{"box": box} for box in boxes[0]]}
    said = "<answer>" + "\n".join("({},{}),({},{})".format(*box) for box in boxes[1]) + "</answer>"
    got = run(tmp_path, "multi_target", [entry], {"m": said})
    table = np.array([[iou(p, t) for p in boxes[1]] for t in boxes[0]])
    assert sum(row["iou"] for row in got["rows"].values()) == pytest.approx(table[linear_sum_assignment(-table)].sum())


def test_slices_and_image_names(tmp_path: Path) -> None:
    box, right = [100, 100, 300, 300], "(100,100),(300,300)"
    base = {"task": "view_diff", "question": "q", "additional_info": "", "answer": box}
    entries = [base | {"images": ["a", "b", "c", "d", "e"][: 2 + i % 3]} for i in range(6)]
    entries[5] = entries[5] | {"answer": [0, 0, 90, 90]}
    texts = {str(i): f"<think>The first image shows nothing.</think><answer>{right}</answer>" for i in range(6)}
    texts["0"] = f"<think>Image-1, but rather Image-2.</think><answer>{right}</answer>"
    texts["1"] = f"<think>Image-1</think><answer>Image-2: {right}</answer>"
    texts["2"] = f"<answer>{right}</answer>"
    result = run(tmp_path, "mig_bench", entries, texts)
    told = result["images"]
    assert told == {"n": 6, "named": 5 / 6, "acc": 2 / 6, "acc@0.5": 2 / 6, "oracle_image_acc@0.5": 5 / 6}
    assert {k: v["n"] for k, v in result["slices"]["num_images"].items()} == {"2": 2, "3": 2, "4": 2}
    assert {k: (v["n"], v["acc@0.5"]) for k, v in result["slices"]["box_size"].items()} == {
        "small": (1, 0.0),
        "medium": (5, 1.0),
    }
    assert "target_image" not in result["slices"]  # the second one in all of them
