"""Templates to a stage-1 file: read back, refused where settings differ, trained on."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import Any

import pytest

from univg_fast.cot.__main__ import main
from univg_fast.cot.filters import leaks
from univg_fast.data.prompts import answer_text
from univg_fast.data.records import read_records

from .conftest import Stub, forget_image, rows, summary, teach, write_boxes


@pytest.mark.parametrize("style", ["univg_r1", "bbox_2d", "box_tokens"])
def test_our_readers_take_the_file(boxes: Path, tmp_path: Path, style: str) -> None:
    out = tmp_path / "made" / "stage1.jsonl"
    assert main(["build", "--data", str(boxes), "--out", str(out), "--answer-style", style]) == 0
    made, bad = read_records(out)
    (given, _) = read_records(boxes)
    assert not bad and [r.uid for r in made] == [r.uid for r in given]
    for before, after in zip(given, made, strict=True):
        assert [(t.box, t.image) for t in after.targets] == [(t.box, t.image) for t in before.targets]
        assert style != "bbox_2d" or after.targets == before.targets  # which writes labels, too
        assert (after.question, after.answer_style, after.cot) == (before.question, style, True)
        assert [Path(p).resolve() for p in after.images] == [Path(p).resolve() for p in before.images]
        assert after.response is not None and answer_text(before.targets, style) in after.response
        assert not leaks(after.response.partition("</think>")[0], after)
    assert len({r.response for r in made}) == len(made)


def test_the_built_in_data_serves_too(tmp_path: Path) -> None:
    small = [f"--data.builtin.{key}=4" for key in ("num_sft", "num_grpo", "num_eval", "crops")]
    arguments = ["--config", "demo", f"--run.dir={tmp_path / 'run'}", *small]
    assert main(["build", "--out", str(tmp_path / "o.jsonl"), *arguments]) == 0
    assert len(rows(tmp_path / "o.jsonl")) == 4


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
    forget_image(path, 0)
    assert main(["build", "--data", str(path), "--out", str(tmp_path / "o.jsonl")]) == 0
    assert summary(tmp_path / "o.jsonl")["removed"] == {"unknown image": 1} and len(rows(tmp_path / "o.jsonl")) == 1


def test_a_file_without_a_record_is_no_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_boxes(tmp_path / "data", 1)
    forget_image(path, 0)
    for _ in range(2):  # built, then found built
        assert main(["build", "--data", str(path), "--out", str(tmp_path / "o.jsonl")]) == 1
        assert f"error: {tmp_path / 'o.jsonl'} is empty: no record was kept" in capsys.readouterr().err


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
