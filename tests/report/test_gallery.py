"""The gallery: which samples are shown, where boxes are drawn, and what is said where none can be."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from univg_fast.evaluate.__main__ import main as evaluate
from univg_fast.report.__main__ import main
from univg_fast.report.gallery import MAX_CARDS, card, chosen, gallery
from univg_fast.report.overlays import PREDICTION_COLOUR, TRUTH_COLOUR, Album


def row(uid: str, iou: float = 0.0, **more: Any) -> dict[str, Any]:
    one = {"uid": uid, "task": "a", "images": ["x.png", "y.png"], "question": "q", "target_image": 1, "image": None}
    return one | {"text": "t", "gt": [0, 0, 500, 500], "box": [100, 0, 500, 500], "iou": iou, "fault": None} | more


def marks(rows: list[dict[str, Any]]) -> list[tuple[int, str, list[float]]]:
    made = card(rows, Album(Path("/nowhere")))
    return [(i, m.colour, list(m.box)) for i, view in enumerate(made.views) for m in view.marks]


def test_every_task_has_its_worst_samples_and_some_of_all_its_range() -> None:
    many = [[row(f"{task}{i}", i / 999, task=task)] for task in "abc" for i in range(1000)]
    shown = [sample[0] for sample in chosen(many)[:MAX_CARDS]]
    assert Counter(one["task"] for one in shown) == dict.fromkeys("abc", MAX_CARDS // 3)
    for task in "abc":
        ious = sorted(one["iou"] for one in shown if one["task"] == task)
        assert ious[:12] == [i / 999 for i in range(12)], "the worst"
        assert ious[-1] == 1 and max(b - a for a, b in zip(ious[12:], ious[13:], strict=False)) < 0.1, (
            "all of the range"
        )
    assert chosen(many) == chosen(many)


def test_the_gallery_ends_when_the_album_is_full(tmp_path: Path) -> None:
    for i in range(30):
        Image.effect_noise((300, 200), 90).save(tmp_path / f"{i}.png")
    rows = [row(str(i), i / 29, images=[f"{i}.png"], target_image=0) for i in range(30)]
    album = Album(tmp_path, budget=200_000)
    cards = gallery(rows, album)
    assert 3 < len(cards) < 30 and album.bytes < 300_000
    assert {"0", "29"} <= {c.uid for c in cards}, "the worst and the best are there in any case"


def test_a_box_is_drawn_where_it_was_scored() -> None:
    truth, said = (1, TRUTH_COLOUR, [0, 0, 500, 500]), (1, PREDICTION_COLOUR, [100, 0, 500, 500])
    assert marks([row("a")]) == [truth, said]
    made = card([row("a", image=0)], Album(Path("/nowhere")))
    assert made.notes == ("the answer names image 1, the target is in 2",) and made.outcomes == {"miss", "elsewhere"}
    assert marks([row("a", target_image=None, image=0)]) == [(0, said[1], said[2])], "no truth without its image"
    assert card([row("a", target_image=None)], Album(Path("/nowhere"))).notes == (
        "nobody says which image the box is in, so it is not drawn",
        "the data does not say which image holds the target, so it is not drawn",
    )
    assert marks([row("a", target_image=None)]) == [] and marks([row("a", image=7, target_image=None)]) == []


@pytest.mark.parametrize(
    ("more", "note"),
    [
        ({"text": " "}, "nothing answered"),
        ({}, "no box could be read from the answer"),
        ({"fault": "inverted_box", "box": [9, 9, 1, 1]}, "the box has no area"),
    ],
)
def test_an_answer_without_a_usable_box_says_why(more: dict[str, Any], note: str) -> None:
    made = card([row("a", **({"box": None, "fault": "no_box"} | more))], Album(Path("/nowhere")))
    assert made.notes == (note,) and made.outcomes == {"miss", "unread"}


def test_targets_of_a_sample_share_a_card(tmp_path: Path) -> None:
    Image.new("RGB", (40, 20), "navy").save(tmp_path / "a.png")
    targets = [{"box": [0, 0, 500, 500]}, {"box": [500, 500, 1000, 1000]}]
    entry = {"id": "s", "task": "<b>t</b>", "images": ["a.png"], "question": "All.", "targets": targets}
    (tmp_path / "data.json").write_text(json.dumps([entry]))
    text = "<think><script>alert(1)</script></think><answer>[0, 0, 500, 500]</answer>"
    (tmp_path / "said.jsonl").write_text(json.dumps({"id": "s", "text": text}))
    given = ["--benchmark", "multi_target", "--data", str(tmp_path / "data.json"), "--out", str(tmp_path / "out")]
    assert evaluate([*given, "--predictions", str(tmp_path / "said.jsonl")]) == 0
    assert main([str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    (made,) = page.split("<article")[1:]
    assert "IoU 0.50" in made and "target 2: no box of the" in made and "1 boxes answered, 2 asked for" in made
    boxes = re.findall(r'class="(solid|dashed)" stroke="\S+" x="(\S+)" y="(\S+)" width="(\S+)" height="(\S+)"', made)
    half = ("0.00", "0.00", "20.00", "10.00")
    assert boxes == [("solid", *half), ("solid", "20.00", "10.00", "20.00", "10.00"), ("dashed", *half)]
    assert "<script" not in page and "<b>t</b>" not in page and "&lt;b&gt;t&lt;/b&gt;" in page
