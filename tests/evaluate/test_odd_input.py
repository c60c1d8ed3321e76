"""Damaged benchmarks and predictions: counted and named, never a crash, and every entry stays in the denominator."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from univg_fast.evaluate.__main__ import main

GOOD = "<answer>(100,100),(300,300)</answer>"


def entry(uid: Any = None, task: str = "diff", answer: Any = (100, 100, 300, 300), **more: Any) -> dict[str, Any]:
    row = {"task": task, "images": ["a.png", "b.png"], "question": "Where?", "answer": answer, "additional_info": ""}
    return row | ({} if uid is None else {"id": uid}) | more


def run(folder: Path, entries: list[Any], lines: list[Any], *more: str, benchmark: str = "mig_bench") -> dict[str, Any]:
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    (folder / "said.jsonl").write_text(text)
    (folder / "data.jsonl").write_text("".join((e if isinstance(e, str) else json.dumps(e)) + "\n" for e in entries))
    given = ["--benchmark", benchmark, "--data", str(folder / "data.jsonl")]
    given += ["--predictions", str(folder / "said.jsonl"), "--out", str(folder / "out")]
    assert main([*given, *more]) == 0
    rows = [json.loads(line) for line in (folder / "out" / "rows.jsonl").read_text().splitlines()]
    result = json.loads((folder / "out" / "results.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    return result | {"rows": rows}


def test_every_odd_prediction_is_counted_and_scores_nothing(tmp_path: Path) -> None:
    entries = [entry(f"q{i}") for i in range(10)]
    lines: list[Any] = [
        {"id": "q0", "text": GOOD},
        {"id": "q0", "text": "<answer>(0,0),(1,1)</answer>"},  # comes a second time
        {"id": "who", "text": GOOD},
        {"id": "q1", "text": " \n"},
        {"id": "q2", "box": [100, 100, float("nan"), 300]},
        {"id": "q3", "box": [100, 100, 300, 4000]},
        {"id": "q4", "box": [100, "100", None, 300]},
        {"id": "q5", "text": None},
        {"id": "q6", "text": "<answer>(300,300),(100,100)</answer>"},
        {"id": "q7", "text": f"<answer>({'9' * 5000},1),({'9' * 400},3)</answer>"},
        {"text": GOOD},
        '{"id": "q8", "text": "cut',
        "{}",
        "17",
    ]
    result = run(tmp_path, entries, lines)
    assert result["n"] == 10 and result["acc@0.5"] == 0.1
    told = result["predictions"]
    assert told["lines"] == 14 and told["matched_by"] == "id" and told["broken_lines"] == 2
    assert told["unknown"] == 1 and told["duplicate"] == 1 and told["without_id"] == 2
    assert told["missing"] == 2 and told["empty"] == 2 and told["examples"]["missing"] == ["q8", "q9"]
    assert told["examples"]["unknown"] == ["who"]
    counts = result["counts"]
    assert (counts["no_box"], counts["bad_box"], counts["inverted_box"], counts["out_of_range_box"]) == (4, 3, 1, 1)
    assert result["data"]["missing_images"] == 10
    assert [row["iou"] > 0 for row in result["rows"]] == [True, False, False, True, *[False] * 6]


def test_damaged_entries_stay_in_the_denominator_of_the_task_that_they_name(tmp_path: Path, capsys: Any) -> None:
    entries = [
        entry("a"),
        entry("b", answer=[100, 100, 100, 300]),  # without area
        entry("c", answer=[1, 2, 3]),
        entry("d", answer="somewhere"),
        entry("a"),  # the id of another one
        entry("e", images="nothing"),
        entry("f", task=7),
        '{"id": "g", "task": "diff',  # nobody knows whether that is all of it
        '{"id": "h", "task": "diff", "ima',
        [1, 2],
    ]
    lines = [{"id": uid, "text": GOOD} for uid in "abcdefg"]
    result = run(tmp_path, entries, lines, "--protocol", "revised")
    assert result["n"] == 10 and result["tasks"]["diff"]["n"] == 7 and result["tasks"]["unknown"]["n"] == 3
    assert result["tasks"]["diff"]["acc@0.5"] == 3 / 7  # both of "a", and the one whose images nobody finds
    assert result["macro"] | {"tasks": 1} == result["macro"] and result["macro"]["acc@0.5"] == 3 / 7
    assert result["outside_the_mean"] == 3
    told = capsys.readouterr().out
    assert "3 entries are of no task of the benchmark" in told and "mean of 1 of 10 tasks" in told
    data = result["data"]
    assert (data["entries"], data["bad_entries"], data["duplicate_ids"]) == (10, 6, 1)
    assert data["other_number_than_published"]["diff"] == "7 of 528"
    assert any("data.jsonl:8" in text for text in data["examples"]["bad_entries"])


def test_entries_of_one_id_have_their_answers_in_order(tmp_path: Path) -> None:
    entries = [entry("a"), entry("a@2"), entry("a"), entry("a")]
    lines = [{"id": "a", "text": GOOD}, {"id": "a", "text": "no"}, {"id": "a@2", "text": "no"}]
    result = run(tmp_path, entries, lines)
    assert [(row["uid"], row["iou"]) for row in result["rows"]] == [("a", 1), ("a@2", 0), ("a@3", 0), ("a@4", 1)]
    assert result["predictions"]["missing"] == 0 and result["data"]["duplicate_ids"] == 2
    many = run(tmp_path, entries, [{"id": "a", "text": "no"}] * 5)
    assert many["predictions"]["duplicate"] == 2 and many["predictions"]["missing"] == 1


def test_answers_without_ids_are_taken_in_order(tmp_path: Path) -> None:
    entries, lines = [entry() for _ in range(4)], [{"text": GOOD}, {"text": "no"}, {"text": GOOD}]
    result = run(tmp_path, entries, lines)
    assert [row["iou"] for row in result["rows"]] == [1.0, 0.0, 1.0, 0.0]
    assert result["predictions"]["matched_by"] == "order" and result["predictions"]["missing"] == 1
    numbered = [{"index": 3, "prediction": GOOD}, {"index": 0, "prediction": GOOD}]  # of entries without ids
    assert [row["iou"] for row in run(tmp_path, entries, numbered)["rows"]] == [1.0, 0.0, 0.0, 1.0]
    cut = run(tmp_path, entries, [lines[0], '{"text": "cu', lines[2]])  # nobody knows whose the third one is
    assert cut["predictions"]["without_id"] == 2 and cut["n"] == 4 and cut["acc@0.5"] == 0


def test_a_text_that_is_no_unicode_is_still_read(tmp_path: Path) -> None:
    """And a truth that a line of predictions repeats is not taken for what was predicted."""
    half = '{"id": "a", "text": "\\ud800 ' + GOOD + '"}'
    result = run(tmp_path, [entry("a"), entry("b")], [half, {"id": "b", "answer": [100, 100, 300, 300], "model": "no"}])
    assert result["acc@0.5"] == 0.5 and result["predictions"]["broken_lines"] == 0
    assert result["predictions"]["empty"] == 1
    with (tmp_path / "said.jsonl").open("wb") as file:
        file.write(b'\xef\xbb\xbf{"id": "a", "text": "\xff' + GOOD.encode() + b'"}\r\n')
    given = ["--benchmark", "mig_bench", "--data", str(tmp_path / "data.jsonl"), "--out", str(tmp_path / "out")]
    assert main([*given, "--predictions", str(tmp_path / "said.jsonl")]) == 0
    assert json.loads((tmp_path / "out" / "results.json").read_text())["acc@0.5"] == 0.5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--benchmark", "mig"], "--benchmark: expected one of mig_bench, "),
        (["--protocol", "new"], "--protocol: expected one of original, revised, got 'new'"),
        (["--protocol", "original"], "0 of 1 answers are fractions"),
        (["--data", "nowhere.json"], "nowhere.json: no such file"),
        (["--predictions", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["--data", "list.json"], "the list is cut or malformed.*the size of the benchmark is not known"),
        (["--data", "empty.json"], "empty.json holds no entries"),
        (["--model", "m"], "expected either --predictions or --model"),
        (["--data.max_length=7"], "expected --model with --data.max_length=7"),
    ],
)
def test_mistakes_end_the_command(
    words: list[str], message: str, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data.jsonl").write_text(json.dumps(entry("a")))
    Path("list.json").write_text("[" + json.dumps(entry("a")) + ', {"id"')
    Path("empty.json").write_text("\n")
    Path("said.jsonl").write_text("")
    given = {"--benchmark": "mig_bench", "--data": "data.jsonl", "--predictions": "said.jsonl", "--out": "out"}
    given |= dict(zip(words[::2], words[1::2], strict=False))
    flat = [word for pair in given.items() for word in pair] + (words if len(words) == 1 else [])
    assert main(flat) == 1
    error = capsys.readouterr().err
    assert re.search(message, error), error


def test_random_damage_never_ends_in_a_traceback(tmp_path: Path) -> None:
    rng = random.Random(3)
    for benchmark in ("mig_bench", "lisa_val", "revos", "refcoco", "multi_target"):
        entries = [
            json.dumps(entry(i, boxes=[[1, 2, 3, 4]], bbox=[1, 2, 3, 4], image="a.png", targets=[])) for i in range(60)
        ]
        lines = [json.dumps({"id": i, "text": GOOD}) for i in range(60)]
        for text in (entries, lines):
            for i in range(1, 60):
                cut = list(text[i])
                for _ in range(rng.randint(0, 3)):
                    cut[rng.randrange(len(cut))] = rng.choice('{}[]",:0-9e\\ nNaIuf\u20ac')
                text[i] = "".join(cut).replace("\n", "")
        assert run(tmp_path, entries, lines, benchmark=benchmark)["data"]["entries"] == 60


@pytest.mark.parametrize("name", ["mig_bench", "lisa_val", "llmseg", "reasonvos", "refcoco", "records"])
@pytest.mark.parametrize(
    "number", ["NaN", "Infinity", "1e400", "1e300", "-1e300", "9" * 400, "null", '"x"', "true"], ids="{:.5}".format
)
def test_no_number_of_a_benchmark_ends_in_a_traceback(name: str, number: str, tmp_path: Path) -> None:
    box, size = f"[1, {number}, 300, 400]", '"width": 640, "height": 480, "id": 0, "additional_info": ""'
    entries = {
        "mig_bench": f'{{"task": "diff", "images": ["a"], "question": "q", "answer": {box}, {size}}}',
        "lisa_val": f'{{"image_path": "a", "instruction": "q", "boxes": [{box}], {size}}}',
        "llmseg": f'{{"image_path": "a", "question": "q", "bbox": [{box}], {size}}}',
        "reasonvos": f'{{"image_list": ["a", "b", "c"], "question": "q", "bbox_list": [0, 0, {box}], {size}}}',
        "refcoco": f'{{"image": "a", "bbox": {box}, "answer": "q", {size}}}',
        "records": f'{{"images": ["a"], "question": "q", "targets": [{{"box": {box}}}], {size}}}',
    }
    result = run(tmp_path, [entries[name]] * 2, [{"id": 0, "text": GOOD}], benchmark=name)
    assert result["n"] == 2 and result["miou"] == 0 and result["data"]["bad_entries"] == 2
