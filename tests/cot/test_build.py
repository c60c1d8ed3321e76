"""The whole road: a teacher's answers or templates to a stage-1 file; killed, gone on with, read back, trained on."""

from __future__ import annotations

import base64
import fcntl
import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from univg_fast.cot.__main__ import main
from univg_fast.cot.filters import leaks
from univg_fast.data.prompts import answer_text
from univg_fast.data.records import read_records

from .conftest import SIZES, Stub, box_of, shown, write_boxes

ROOT = Path(__file__).resolve().parents[2]


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def summary(path: Path) -> dict[str, Any]:
    return json.loads(path.with_name(path.name + ".summary.json").read_text())


def teach(stub: Stub, boxes: Path, out: Path, *more: str) -> int:
    asked = ["--teacher", stub.url, "--model", "t", "--candidates", "4", "--timeout", "5", *more]
    return main(["build", "--data", str(boxes), "--out", str(out), *asked])


@pytest.mark.parametrize("style", ["univg_r1", "bbox_2d", "box_tokens"])
def test_our_readers_take_the_file(boxes: Path, tmp_path: Path, style: str) -> None:
    out = tmp_path / "made" / "stage1.jsonl"
    assert main(["build", "--data", str(boxes), "--out", str(out), "--answer-style", style]) == 0
    made, bad = read_records(out)
    (given, _) = read_records(boxes)
    assert not bad and [r.uid for r in made] == [r.uid for r in given]
    for before, after in zip(given, made, strict=True):
        label = before.targets[0].label if style == "bbox_2d" else None
        assert after.targets == tuple(replace(t, label=label) for t in before.targets)
        assert (after.question, after.answer_style, after.cot) == (before.question, style, True)
        assert [Path(p).resolve() for p in after.images] == [Path(p).resolve() for p in before.images]
        assert after.response is not None and answer_text(before.targets, style) in after.response
        assert not leaks(after.response.partition("</think>")[0], after)
    assert len({r.response for r in made}) == len(made)


def test_a_teacher_is_asked_filtered_and_the_best_is_kept(stub: Stub, boxes: Path, tmp_path: Path) -> None:
    out = tmp_path / "stage1.jsonl"
    os.environ["TEST_TEACHER_KEY"] = "k-123"
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
    assert teach(stub, boxes, out, "--timeout", "0.3", "--threads", "2") == 0
    assert summary(out)["kept"] == 6 and len(stub.requests) == 6 * 5 + 7


@pytest.mark.parametrize(
    "reply",
    ["", "\ud800<think>\x00</think>", "<think>" * 5000, "(1,2),(3" * 5000, "<think>a</think><answer>(1,2),(3,4)"],
)
def test_whatever_a_teacher_says_is_judged(stub: Stub, boxes: Path, tmp_path: Path, reply: str) -> None:
    stub.reply = lambda asked: reply
    assert teach(stub, boxes, tmp_path / "o.jsonl") == 0
    assert summary(tmp_path / "o.jsonl")["removed"] == {"format": 24} and rows(tmp_path / "o.jsonl") == []


def test_half_a_surrogate_pair_does_not_reach_the_file(stub: Stub, boxes: Path, tmp_path: Path) -> None:
    helpful = stub.reply
    stub.reply = lambda asked: helpful(asked).replace("The cup", "The \ud800 cup")
    assert teach(stub, boxes, tmp_path / "o.jsonl") == 0
    made, bad = read_records(tmp_path / "o.jsonl")
    assert len(made) == 6 and not bad and made[0].response is not None and "The ? cup" in made[0].response


def test_the_built_in_data_serves_too(tmp_path: Path) -> None:
    small = [f"--data.builtin.{key}=4" for key in ("num_sft", "num_grpo", "num_eval", "crops")]
    arguments = ["--config", "demo", f"--run.dir={tmp_path / 'run'}", *small]
    assert main(["build", "--out", str(tmp_path / "o.jsonl"), *arguments]) == 0
    assert len(rows(tmp_path / "o.jsonl")) == 4


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


def test_other_settings_are_not_mixed_in(stub: Stub, boxes: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "stage1.jsonl"
    assert main(["build", "--data", str(boxes), "--out", str(out)]) == 0
    content = out.read_bytes()
    assert main(["build", "--data", str(boxes), "--out", str(out)]) == 0 and out.read_bytes() == content
    assert "is there already" in capsys.readouterr().out
    assert main(["build", "--data", str(boxes), "--out", str(out), "--seed", "3"]) == 1
    assert "seed was 0" in capsys.readouterr().err
    stub.trouble = [422]
    assert teach(stub, boxes, tmp_path / "b.jsonl") == 1
    capsys.readouterr()
    assert teach(stub, boxes, tmp_path / "b.jsonl", "--temperature", "0.5") == 1
    assert "unfinished build" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "either --data or --config"),
        (["--data", "x", "--levels", "word"], "--levels"),
        (["--data", "x", "--candidates", "0"], "--candidates: expected a number above 0"),
        (["--data", "x", "--teacher", "http://h"], "--model"),
        (["--data", "x", "--teacher", "h:80", "--model", "m"], "begins with http://"),
        (["--data", "x", "--hint"], "expected --teacher"),
        (["--data", "x", "--data.max_pixel=3"], "did you mean 'data.max_pixels'"),
    ],
)
def test_mistakes_of_the_command_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", "--out", "never.jsonl", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_record_without_an_image_number_is_counted(tmp_path: Path) -> None:
    path = write_boxes(tmp_path / "data", 2)
    lines = rows(path)
    del lines[0]["targets"][0]["image"]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["build", "--data", str(path), "--out", str(tmp_path / "o.jsonl")]) == 0
    assert summary(tmp_path / "o.jsonl")["removed"] == {"unknown image": 1} and len(rows(tmp_path / "o.jsonl")) == 1


def start(boxes: Path, out: Path, stub: Stub) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "univg_fast.cot", "build", "--data", str(boxes), "--out", str(out)]
    command += ["--teacher", stub.url, "--model", "t", "--candidates", "4", "--threads", "4"]
    paths = [str(ROOT), str(ROOT / "kernels"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a run in the background hands on deaf ears
    )  # fmt: skip


def test_killed_in_the_middle_and_started_again(stub: Stub, tmp_path: Path) -> None:
    boxes, out = write_boxes(tmp_path / "data", 40), tmp_path / "stage1.jsonl"
    assert teach(stub, boxes, tmp_path / "whole.jsonl") == 0
    whole, stub.delay, journal = (tmp_path / "whole.jsonl").read_bytes(), 0.02, tmp_path / "stage1.jsonl.journal"
    process = start(boxes, out, stub)
    until = time.monotonic() + 60
    while not (journal.exists() and journal.read_bytes().count(b"\n") > 8) and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert not out.exists() and journal.exists()
    done = journal.read_bytes().count(b"\n") - 1
    assert 8 <= done < 40
    with journal.open("ab") as file:  # a line cut by the kill
        file.write(b'{"index": 39, "removed": {}, "ro')
    before = len(stub.requests)
    process = start(boxes, out, stub)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and f"going on after {done} records" in said, said
    assert out.read_bytes() == whole and not journal.exists()
    assert len(stub.requests) - before == (40 - done) * 5  # what was done is not asked again
    assert [row["id"] for row in rows(out)] == [f"r{i}" for i in range(40)]
    assert "\r" not in said and "cot 40/40 | kept 40 of 40" in said


def test_ctrl_c_ends_at_once_and_loses_nothing(stub: Stub, tmp_path: Path) -> None:
    boxes, out = write_boxes(tmp_path / "data", 12), tmp_path / "stage1.jsonl"
    process = start(boxes, out, stub)
    until = time.monotonic() + 60
    while len(stub.requests) < 25 and time.monotonic() < until:
        time.sleep(0.005)
    stub.delay = 20.0
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=10)  # and not as long as the requests under way take
    assert process.returncode == 130 and "the same command goes on" in said
    assert not out.exists() and Path(f"{out}.journal").read_bytes().endswith(b"\n")


def test_two_builds_of_one_file_are_refused(boxes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal = tmp_path / "stage1.jsonl.journal"
    with journal.open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert main(["build", "--data", str(boxes), "--out", str(tmp_path / "stage1.jsonl")]) == 1
    assert "another process is building" in capsys.readouterr().err
    assert main(["build", "--data", str(boxes), "--out", str(tmp_path / "stage1.jsonl")]) == 0


def test_image_paths_hold_through_links(boxes: Path, tmp_path: Path) -> None:
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "away")
    out = tmp_path / "link" / "stage1.jsonl"
    assert main(["build", "--data", str(boxes), "--out", str(out)]) == 0
    assert [len(read_records(path)[1]) for path in (out, tmp_path / "far/away/stage1.jsonl")] == [0, 0]


@pytest.mark.slow
def test_two_steps_of_sft_on_what_was_built(tmp_path: Path, trainer: Any) -> None:
    from univg_fast.data.builtin import BuiltinConfig, write_builtin

    write_builtin(tmp_path / "b", BuiltinConfig(image_size=84, lattice=3, object_cells=(1,), num_sft=0, num_grpo=12,
                                                num_eval=0, crops=8))  # fmt: skip
    out = tmp_path / "stage1.jsonl"
    assert main(["build", "--data", str(tmp_path / "b/stage2.json"), "--out", str(out)]) == 0
    run = trainer(tmp_path / "run", data__builtin="null", data__sft=f"[{out}]", stages="[sft]", sft__max_steps="2")
    assert [row["step"] for row in run.metrics("sft")] == [1, 2] and run.metrics("sft")[1]["bad_records"] == 0
