"""The oracle image: which images are left out, whose box is meant then, and that the model sees nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from univg_fast.evaluate.__main__ import main
from univg_fast.evaluate.items import Item, Truth, item_of, record_of
from univg_fast.evaluate.oracle import with_oracle_image
from univg_fast.evaluate.predictions import read_predictions
from univg_fast.report.evaluation import about
from univg_fast.structs import Record, Target

BOX = (100, 100, 300, 300)
ASK = ["--evaluate.max_completion_length=8", "--data.prompt_template=short"]


def item(uid: str, images: int, *held: int | None) -> Item:
    return Item(uid, "f:1", "t", tuple("abcdef"[:images]), "Where?", tuple(Truth(BOX, at) for at in held))


def test_only_images_that_hold_a_target_are_left_and_none_of_the_items_is_lost() -> None:
    given = [item("single", 1, 0), item("second", 3, 1), item("two", 4, 3, 1, 3), item("all", 2, 0, 1),
             item("nobody", 3, None), item("half", 3, 1, None), item("beyond", 2, 7),
             item("below", 2, -1), item("past", 3, 1, 3), Item("damaged", "f:9", "t", problem="?")]  # fmt: skip
    shown, counts = with_oracle_image(given)
    assert counts == {"reduced": 2, "whole": 2, "unknown": 6}
    assert [i.uid for i in shown] == [i.uid for i in given]
    told = {i.uid: ("".join(i.images), [truth.image for truth in i.truths]) for i in shown}
    assert told["second"] == ("b", [0]) and told["two"] == ("bd", [1, 0, 1])
    assert [i for i in shown if i.uid not in ("second", "two")] == [i for i in given if i.uid not in ("second", "two")]


def test_a_record_of_the_trainer_is_asked_about_these_images() -> None:
    record = Record("a", "f:1", ("a", "b", "c"), "Both?", (Target((1, 2, 3, 4), 2, "cup"), Target((5, 6, 7, 8), 1)))
    (shown,), _ = with_oracle_image([item_of(record)])
    asked = record_of(shown)
    assert asked.images == ("b", "c") and [target.image for target in asked.targets] == [1, 0]
    assert asked.targets[0].label == "cup" and asked.question == "Both?"


def run(small: Path, data: Path, out: Path, *more: str) -> tuple[dict[str, Any], list[str]]:
    given = ["--benchmark", "records", "--data", data, "--image-root", small / "data", "--model", small / "model"]
    assert main([*map(str, given), "--out", str(out), *ASK, *more]) == 0
    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    return json.loads((out / "results.json").read_text()), [row["text"] for row in rows]


def test_a_part_of_the_entries_is_told_and_not_compared(small: Path, tmp_path: Path, capsys: Any) -> None:
    result, texts = run(small, small / "data" / "eval.json", tmp_path / "out", "--evaluate.max_samples=3")
    assert (result["n"], len(texts), result["entries_in_file"], result["published"]) == (3, 3, 8, [])
    assert "data: scored 3 of 8 entries (evaluate.max_samples)" in capsys.readouterr().out
    assert "the first 3 entries only" in about(result)
    whole, _ = run(small, small / "data" / "eval.json", tmp_path / "out", "--evaluate.max_samples=9")
    assert "entries_in_file" not in whole and "entries only" not in about(whole)


def test_the_command_asks_as_if_the_other_images_were_not_in_the_file(small: Path, tmp_path: Path, capsys: Any) -> None:
    """And its answers are not mixed with those of all images."""
    data = small / "data" / "eval.json"
    entries = json.loads(data.read_text())
    for entry in entries:
        at = entry["target_image"]
        entry["images"], entry["target_image"] = [entry["images"][at]], 0
        entry["question"] = "<image>" + entry["question"].replace("<image>", "")
    (tmp_path / "alone.json").write_text(json.dumps(entries))
    oracle, texts = run(small, data, tmp_path / "oracle", "--oracle-image")
    assert oracle["oracle_image"] == {"reduced": 8, "whole": 0, "unknown": 0} and oracle["published"] == []
    assert oracle["n"] == 8 and oracle["generation"]["oracle_image"] is True
    assert "oracle image: 8 entries shown without" in capsys.readouterr().out
    assert texts == run(small, tmp_path / "alone.json", tmp_path / "alone")[1] and len(set(texts)) > 1
    everything, others = run(small, data, tmp_path / "all")
    assert "oracle_image" not in everything and others != texts
    first = (tmp_path / "oracle" / "answers.0.jsonl").read_text().splitlines()[0]
    assert json.loads(first)["settings"]["oracle_image"] is True  # the folder takes no other answers (test_model.py)
    (item,) = items = [item_of(Record("a", "f:1", ("a",), "?", (Target((1, 2, 3, 4), 0),)))]
    with pytest.raises(ValueError, match=r"answers\.0\.jsonl:1: .*--oracle-image with the folder as --out"):
        read_predictions(tmp_path / "oracle" / "answers.0.jsonl", items)
