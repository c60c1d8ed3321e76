"""Asking a teacher: what it is told, what is made of its answers, and troubles of all kinds."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import pytest
from PIL import Image

from univg_fast.cot.filters import Candidate, well_formed
from univg_fast.cot.teacher import question_for
from univg_fast.data.entries import STYLES
from univg_fast.data.prompts import answer_text
from univg_fast.data.records import read_records
from univg_fast.structs import Record, Target

from .conftest import SIZES, Stub, box_of, forget_image, rows, shown, summary, teach


def test_a_record_of_unknown_image_is_not_asked_about(stub: Stub, boxes: Path, tmp_path: Path) -> None:
    """Its trace could not be checked: it must neither be kept nor cost a request."""
    forget_image(boxes, 1, 4)
    out = tmp_path / "stage1.jsonl"
    assert teach(stub, boxes, out) == 0
    assert summary(out)["removed"] == {"unknown image": 2, "leak": 4, "image": 4, "iou_gain": 4}
    assert [row["id"] for row in rows(out)] == ["r0", "r2", "r3", "r5"] and len(stub.requests) == 4 * 5
    asked = "".join(r["messages"][0]["content"][-1]["text"] for r in stub.requests)
    assert "item 0." in asked and "item 1." not in asked and "item 4." not in asked


@pytest.mark.parametrize("names_images", [False, True])
@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("style", STYLES)
def test_the_teacher_is_told_one_form(style: str, number: int, names_images: bool) -> None:
    """And what has that form is what the `format` filter lets through."""
    targets = tuple(Target((100, 200, 300, 400), i, "cat") for i in range(number))
    record = Record("u", "f:1", ("a", "b"), "Where?", targets, answer_style=style, names_images=names_images)
    for thinks in (True, False):
        asked = question_for(record, thinks)
        told = re.findall(r"(?:<\|box_start\|>)?\(x1, ?y1\)|\[x1", asked)
        assert told == [{"univg_r1": "(x1,y1)", "bbox_2d": "[x1", "box_tokens": "<|box_start|>(x1,y1)"}[style]]
    obeyed = answer_text(targets, style, names_images)
    assert well_formed(Candidate(f"<think>So.</think><answer>{obeyed}</answer>"), record)


def test_a_teacher_is_asked_filtered_and_the_best_is_kept(
    stub: Stub, boxes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "stage1.jsonl"
    monkeypatch.setenv("TEST_TEACHER_KEY", "k-123")
    assert teach(stub, boxes, out, "--api-key-env", "TEST_TEACHER_KEY") == 0
    made = rows(out)
    assert summary(out)["removed"] == {"leak": 6, "image": 6, "iou_gain": 6} and summary(out)["kept"] == len(made) == 6
    for i, row in enumerate(made):
        assert row["conversations"][1]["value"].endswith(
            f"<answer>{shown(box_of(i))}</answer>"
        )  # not the teacher's own
        assert f"The target is in Image-{i % 2 + 1}." in row["conversations"][1]["value"]
    assert len(stub.requests) == 6 * 5 and {r["path"] for r in stub.requests} == {"/v1/chat/completions"}
    assert {h.get("Authorization") for h in stub.headers} == {"Bearer k-123"}
    assert {r["temperature"] for r in stub.requests} == {0.0, 1.0} and {r["model"] for r in stub.requests} == {"t"}
    texts = [r["messages"][0]["content"][-1]["text"] for r in stub.requests]
    assert not any(shown(box_of(i)) in text for text in texts for i in range(6))  # the answer is not given away
    urls = [part["image_url"]["url"] for part in stub.requests[0]["messages"][0]["content"] if "image_url" in part]
    pictures = [Image.open(io.BytesIO(base64.b64decode(u.removeprefix("data:image/jpeg;base64,")))) for u in urls]
    assert tuple(p.size for p in pictures) == SIZES


def test_with_a_hint_the_answer_is_shown_and_no_gain_asked_for(stub: Stub, boxes: Path, tmp_path: Path) -> None:
    out = tmp_path / "stage1.jsonl"
    assert teach(stub, boxes, out, "--hint") == 0
    assert summary(out)["removed"] == {"leak": 6, "image": 6} and summary(out)["kept"] == 6
    asked = sorted(r["messages"][0]["content"][-1]["text"] for r in stub.requests)
    assert len(asked) == 6 * 4 and all(any(shown(box_of(i)) in text for i in range(6)) for text in asked)


def test_troubles_of_a_network_are_waited_for(stub: Stub, boxes: Path, tmp_path: Path) -> None:
    stub.trouble = [429, 500, "cut", "slow", 503, 200, 502, "cut"]
    out = tmp_path / "stage1.jsonl"
    assert teach(stub, boxes, out, "--timeout", "4", "--threads", "2") == 0
    assert summary(out)["kept"] == 6 and len(stub.requests) == 6 * 5 + 7


@pytest.mark.parametrize(
    "reply",
    ["", "\ud800<think>\x00</think>", "<think>" * 5000, "(1,2),(3" * 5000, "<think>a</think><answer>(1,2),(3,4)"],
)
def test_whatever_a_teacher_says_is_judged(stub: Stub, boxes: Path, tmp_path: Path, reply: str) -> None:
    stub.reply = lambda asked: reply
    assert teach(stub, boxes, tmp_path / "o.jsonl") == 1  # none is kept
    assert summary(tmp_path / "o.jsonl")["removed"] == {"format": 24} and rows(tmp_path / "o.jsonl") == []


def test_half_a_surrogate_pair_does_not_reach_the_file(stub: Stub, boxes: Path, tmp_path: Path) -> None:
    helpful = stub.reply
    stub.reply = lambda asked: helpful(asked).replace("The cup", "The \ud800 cup")
    assert teach(stub, boxes, tmp_path / "o.jsonl") == 0
    made, bad = read_records(tmp_path / "o.jsonl")
    assert len(made) == 6 and not bad and made[0].response is not None and "The ? cup" in made[0].response


def test_what_fails_for_good_is_told_and_tried_again(
    stub: Stub, boxes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "stage1.jsonl"
    stub.trouble = [422]
    assert teach(stub, boxes, out, "--threads", "1") == 1
    assert "boxes.jsonl:1: " in capsys.readouterr().err and len(rows(out)) == 5 and summary(out)["failed"] == 1
    before = len(stub.requests)
    assert teach(stub, boxes, out) == 0
    assert len(stub.requests) == before + 5 and [row["id"] for row in rows(out)] == [f"r{i}" for i in range(6)]


def test_a_teacher_that_refuses_stops_the_build(
    stub: Stub, boxes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stub.trouble = [401] * 99
    assert teach(stub, boxes, tmp_path / "a.jsonl", "--threads", "1") == 1
    assert "refused with HTTP 401" in capsys.readouterr().err and len(stub.requests) <= 3
