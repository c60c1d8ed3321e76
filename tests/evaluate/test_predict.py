"""python -m univg_fast.predict: what it makes of an answer, and the command with a model of random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from univg_fast.evaluate.predictions import Prediction
from univg_fast.predict.__main__ import main
from univg_fast.predict.questions import described, item_of, sheet, told

SIZES = ((200, 100), (400, 300), (50, 50))


def images(folder: Path) -> list[str]:
    for k, size in enumerate(SIZES):
        Image.new("RGB", size, "white").save(folder / f"{k}.png")
    return [str(folder / f"{k}.png") for k in range(len(SIZES))]


def said(text: str, folder: Path) -> dict[str, Any]:
    return described(item_of("q", "p:1", images(folder), "Where?", True), Prediction(text, None, 7, None, SIZES))


def test_an_answer_is_described_in_pixels_of_its_own_image(tmp_path: Path) -> None:
    one = said("<think>The cup is in Image-2.</think>\n<answer>(100,200),(505,1000)</answer>", tmp_path)
    assert (one["thought"], one["image"], one["box"]) == ("The cup is in Image-2.", 2, [100, 200, 505, 1000])
    assert one["box_px"] == [40, 60, 202, 300] and one["tokens"] == 7 and json.dumps(one)
    assert told(one) == "The cup is in Image-2.\nimage 2: [100, 200, 505, 1000] of 1000, [40, 60, 202, 300] px"
    two = said("<answer>Image-1: (0,0),(500,500)\nImage-3: (0,0),(1000,500)</answer>", tmp_path)
    assert [(b["image"], b["box_px"]) for b in two["boxes"]] == [(1, [0, 0, 100, 50]), (3, [0, 0, 50, 25])]
    unnamed = said("<answer>(0,0),(500,500)</answer>", tmp_path)
    assert unnamed["image"] is None and unnamed["box_px"] is None and "no image named" in told(unnamed)
    for text in ("", "<think>hm", "<answer>(5,5),(5,9)</answer>"):
        assert said(text, tmp_path)["box"] is None and told(said(text, tmp_path))


def test_the_picture_has_the_box_in_its_image_only(tmp_path: Path) -> None:
    found = said("<answer>Image-2: (250,250),(750,750)</answer>", tmp_path)
    drawn = sheet(found)
    red = [
        x for x in range(drawn.width) if any(drawn.getpixel((x, y)) == (216, 31, 42) for y in range(20, drawn.height))
    ]
    second = 8 + 720 + 8  # images are 360 px high, 8 px apart; the second one is 480 px wide
    assert second + 115 <= min(red) <= second + 125 and second + 355 <= max(red) <= second + 365


def test_the_command_answers_one_question_and_many(small: Path, tmp_path: Path, capsys: Any) -> None:
    paths = images(tmp_path)
    given = ["--model", str(small / "model"), "--evaluate.max_completion_length=6", "--data.max_pixels=12544"]
    out = tmp_path / "sheet.png"
    assert main([*given, "--images", *paths[:2], "--question", "Where is it?", "--json", "--out", str(out)]) == 0
    one = json.loads(capsys.readouterr().out)
    assert one["images"] == paths[:2] and one["tokens"] == 6 and one["text"] and Image.open(out).height > 360
    lines = [
        {"images": ["0.png", "1.png"], "question": "Where is it?"},
        {"images": ["no.png"], "question": "x"},
        {"id": "c"},
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"cut\n')
    assert main([*given, "--batch", str(tmp_path / "in.jsonl"), "--out", str(tmp_path / "out.jsonl")]) == 1
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert rows[0] | {"id": "question"} == one  # a question of a batch is answered as if it were alone
    assert [row["id"] for row in rows] == ["0", "1", "c", "3"] and not rows[0]["error"]
    assert "no.png" in rows[1]["error"] and "images: expected" in rows[2]["error"] and "in.jsonl:4" in rows[3]["error"]
    assert "3 of 4 questions have no answer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--images", "0.png"], 2, "expected --images and --question, or --batch, or --serve"),
        (["--images", "0.png", "--question", "q", "--data.max_pixel=9"], 2, "data.max_pixels"),
        (["--images", "0.png", "--question", "q", "--out", "x.txt"], 1, "--out: expected a picture"),
        (
            ["--images", "0.png", "--question", "q", "--out", "no/x.png"],
            1,
            "--out: expected a file in a folder that exists",
        ),
        (["--batch", "0.png", "--out", "."], 1, "--out: expected a file in a folder that exists, got ."),
        (["--images", "no.png", "--question", "q"], 1, "no.png"),
        (["--images", "0.png", "--question", "q", "--model", "nowhere"], 1, "--model: expected a folder"),
    ],
)
def test_mistakes(
    words: list[str], code: int, message: str, small: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    images(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["--model", str(small / "model"), *words]) == code
    assert message in capsys.readouterr().err
