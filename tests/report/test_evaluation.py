"""The page of an evaluation that the real command made of the built-in data, and the page of two of them."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from univg_fast.data.builtin import BuiltinConfig, write_builtin
from univg_fast.evaluate.__main__ import main as evaluate
from univg_fast.evaluate.metrics import paired_difference, percent
from univg_fast.evaluate.published import FILE as PUBLISHED
from univg_fast.report.__main__ import main
from univg_fast.report.run import read_jsonl

NAMES = {"group_grounding": "GG", "refer_grounding": "Refer"}  # the built-in tasks' names in MIG-Bench's tables
FILTER = """(() => {
  const cards = [...document.querySelectorAll(".gallery .card")], found = {};
  const seen = () => cards.filter(c => c.getClientRects().length).map(c => c.dataset.uid);
  const press = id => document.querySelector(`label:has(#${id})`).click();
  for (const input of document.querySelectorAll(".filters input")) { press(input.id); found[input.id] = seen(); press(
    input.name == "task" ? "task0" : "any"); }
  press("task1"); press("miss");
  found.both = seen();
  return found;
})()"""


def answer(record: dict[str, Any], chance: random.Random) -> str:
    """Right, beside it, in words only, cut short, or nothing; sometimes with the wrong image named."""
    image = 1 if chance.random() < 0.3 else record["target_image"] + 1
    x1, y1, x2, y2 = record["answer"]
    shift = chance.choice((0, 0, 0, 40, 150, 400))
    box = f"({x1},{y1}),({x2},{y2 + shift})"
    said = chance.choice((f"<answer>{box}</answer>",) * 5 + ("<answer>there</answer>", "<answer>(1"))
    return "" if chance.random() < 0.1 else f"<think>It is in image {image}.</think>{said}"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two evaluations of one file, which MIG-Bench's reader takes: it has two of the ten tasks."""
    root = tmp_path_factory.mktemp("evaluations")
    config = BuiltinConfig(image_size=84, lattice=3, object_cells=(1,), crops=8, num_sft=1, num_grpo=1, num_eval=60)
    data = write_builtin(root / "data", config)["eval"]
    for seed, name in enumerate(("first", "second")):
        chance, said = random.Random(seed), root / f"{name}.jsonl"
        records = json.loads(data.read_text())[seed:]  # the second has no answer to the first entry
        said.write_text("".join(json.dumps({"id": r["id"], "text": answer(r, chance)}) + "\n" for r in records))
        given = ["--benchmark", "mig_bench", "--data", str(data), "--predictions", str(said)]
        assert evaluate([*given, "--out", str(root / name)]) == 0
    return [root / "first", root / "second"]


@pytest.fixture(scope="module")
def page(folders: list[Path]) -> str:
    assert main([str(folders[1])]) == 0
    return (folders[1] / "report.html").read_text(encoding="utf-8")


def result_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def cells(page: str, heading: str) -> list[tuple[str, list[str]]]:
    """(first cell, the others) of each line of a chapter's tables, without markup."""
    chapter = page.partition(f"<h2>{heading}")[2].partition("<h2>")[0]
    lines = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.DOTALL) for row in chapter.split("<tr")]
    clean = [[" ".join(unescape(re.sub("<[^>]*>", " ", cell)).split()) for cell in line] for line in lines if line]
    return [(first, rest) for first, *rest in clean]


def interval(pair: list[float]) -> str:
    return f"{percent(pair[0])}–{percent(pair[1])}"


def test_figures_by_task_are_those_of_the_result(page: str, folders: list[Path]) -> None:
    result, table = result_of(folders[1]), dict(cells(page, "Results by task"))
    lines = {NAMES[task]: figures for task, figures in result["tasks"].items()}
    lines |= {"mean of 2 of 10 tasks": result["macro"], "all samples": result}
    assert list(table)[1:] == ["Refer", "GG", "mean of 2 of 10 tasks", "all samples"]
    for label, figures in lines.items():
        accuracy = [percent(figures["acc@0.5"]), interval(figures["acc@0.5_ci95"])]
        others = [percent(figures[f"acc@{t}"]) for t in (0.3, 0.7, 0.9)]
        iou = [percent(figures["miou"]), interval(figures["miou_ci95"])]
        kinds = ("no_box", "bad_box", "inverted_box")
        unread = percent(sum(figures["counts"][k] for k in kinds) / figures["n"]) if "n" in figures else "-"
        assert table[label] == [str(figures.get("n", "")), *accuracy, *others, *iou, unread]
    assert sum(figures["counts"]["no_box"] for figures in result["tasks"].values()) == result["counts"]["no_box"] > 0


def test_published_figures_stand_beside_with_their_sources(page: str, folders: list[Path]) -> None:
    result, table = result_of(folders[1]), dict(cells(page, "Beside published figures"))
    content = json.loads(PUBLISHED.read_text())
    (revised,) = [t for t in content["tables"] if t["benchmarks"] == ["mig_bench"] and t["protocol"] == "revised"]
    told = {re.sub(r"( \d)* (UniVG-R1|MG-Thinker), arXiv.*", "", name): line for name, line in table.items()}
    for row in revised["rows"]:
        values = [f"{row['values'][column]:.2f}" if "values" in row else "–" for column in ("Refer", "GG")]
        assert told[row["model"]] == [f"{row['average']:.2f}", *values]
        source = content["sources"][row["source"]]
        assert any(name.startswith(row["model"]) and name.endswith(source) for name in table)
    (ours,) = [line for name, line in table.items() if name.startswith("this evaluation")]
    assert [name for name in table if name.startswith("this evaluation, the mean of 2 of 10 tasks")]
    mean, by_task = result["macro"], result["tasks"]
    assert ours[0] == f"{100 * mean['acc@0.5']:.2f} {interval(mean['acc@0.5_ci95'])}"
    assert ours[1:] == [f"{100 * by_task[task]['acc@0.5']:.2f}" for task in ("refer_grounding", "group_grounding")]
    assert "protocol revised" in page and "the ten tasks average 72.62, and 72.64 is printed" in page


def test_slices_and_what_was_odd_are_those_of_the_result(page: str, folders: list[Path]) -> None:
    result, table, odd = result_of(folders[1]), cells(page, "Slices"), dict(cells(page, "What was odd"))
    lines = [line for _, line in table]
    assert {"num_images", "target_image"} & result["slices"].keys()
    for values in result["slices"].values():
        for figures in values.values():
            metrics = ("acc@0.5", "acc@0.3", "acc@0.7", "acc@0.9", "miou")
            unread = percent(figures["counts"]["no_box"] / figures["n"])
            assert [str(figures["n"]), *(percent(figures[m]) for m in metrics), unread] in lines
    assert dict(table)["name the right one"] == [percent(result["images"]["acc"])]
    assert result["counts"]["no_box"] > 5
    assert odd["answers without a readable box"][0] == str(result["counts"]["no_box"])
    assert odd["predictions: missing"][0] == "1" and odd["predictions: empty"][0] == str(result["predictions"]["empty"])
    assert "<summary>predictions: missing</summary>" in page and "GG" in page


@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser_the_filters_work_and_nothing_overflows(
    page: str, folders: list[Path], lay_out: Callable, width: int
) -> None:
    found = lay_out(page, width, FILTER)
    assert found["page"] <= found["width"] <= width
    assert (found["over"], found["fetched"], found["blank"]) == ([], [], 0)
    assert "<script" not in page
    rows = {row["uid"]: row for row in read_jsonl(folders[1] / "rows.jsonl", [])}
    seen = found["said"]
    assert len(seen["task0"]) == len(rows) == 60, "all fit on the page"
    assert [rows[uid]["iou"] for uid in seen["task0"]] == sorted(row["iou"] for row in rows.values())
    assert seen["any"] == seen["task0"]
    keep = {
        "task1": lambda row: row["task"] == "refer_grounding",
        "task2": lambda row: row["task"] == "group_grounding",
        "hit": lambda row: row["iou"] >= 0.5,
        "miss": lambda row: row["iou"] < 0.5,
        "unread": lambda row: row["fault"] is not None,
        "elsewhere": lambda row: None not in (pair := (row["image"], row["target_image"])) and len(set(pair)) > 1,
        "both": lambda row: row["task"] == "refer_grounding" and row["iou"] < 0.5,
    }
    assert seen.keys() == keep.keys() | {"task0", "any"}
    for name, of in keep.items():
        assert sorted(seen[name]) == sorted(uid for uid, row in rows.items() if of(row)) != [], name


def test_the_page_of_two_evaluations(folders: list[Path], tmp_path: Path, lay_out: Callable) -> None:
    out = tmp_path / "both.html"
    assert main([*map(str, folders), "--out", str(out)]) == 0
    page, results = out.read_text(encoding="utf-8"), [result_of(folder) for folder in folders]
    first, second = (read_jsonl(folder / "rows.jsonl", []) for folder in folders)
    paired, table = paired_difference(second, first), dict(cells(page, "Results"))
    points = [f"{100 * x:+.1f}" for x in (paired["difference"], *paired["ci95"])]
    assert table["all samples"][1].endswith(f"{points[0]} ({points[1]} to {points[2]})")
    for label, pick in (("all samples", lambda r: r), ("mean of tasks", lambda r: r["macro"])):
        for cell, figures in zip(table[label], map(pick, results), strict=True):
            assert cell.startswith(f"{percent(figures['acc@0.5'])} ({interval(figures['acc@0.5_ci95'])})")
    bars = page.partition("<h2>By task")[2].partition("<h2>")[0]
    assert re.findall("<b>(.*?)</b>", bars) == [
        percent(r["tasks"][task]["acc@0.5"]) for task in ("refer_grounding", "group_grounding") for r in results
    ]
    assert "files.predictions_digest" in page and "not comparable" not in page
    found = lay_out(page, 390)
    assert found["page"] <= found["width"] and (found["over"], found["fetched"], found["blank"]) == ([], [], 0)


def test_published_rows_do_not_stand_beside_the_oracle_image(folders: list[Path], tmp_path: Path) -> None:
    """Also where the first evaluation is one of all images: those models saw them all, too."""
    out = tmp_path / "out.html"
    assert main([*map(str, folders), "--out", str(out)]) == 0
    assert "MG-Thinker" in out.read_text()
    shown = result_of(folders[1]) | {"oracle_image": {"reduced": 9, "whole": 51, "unknown": 0}, "published": []}
    (tmp_path / "results.json").write_text(json.dumps(shown))
    (tmp_path / "rows.jsonl").write_text((folders[1] / "rows.jsonl").read_text())
    assert main([str(folders[0]), str(tmp_path), "--out", str(out)]) == 0
    page = out.read_text()
    assert "MG-Thinker" not in page and "not comparable" not in page


def test_folders_that_cannot_be_shown_are_named(
    folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    assert main([str(folders[0]), str(tmp_path / "run")]) == 2
    assert f"{tmp_path / 'run'} holds no results.json" in capsys.readouterr().err
    for text, why in (('{"half', "is no JSON"), ("[]", "expected benchmark, tasks, counts")):
        (tmp_path / "results.json").write_text(text)
        assert main([str(tmp_path)]) == 2
        assert why in capsys.readouterr().err
    other = result_of(folders[0])
    other["files"]["data_digest"] = "another"
    (tmp_path / "results.json").write_text(json.dumps(other))
    rows = (folders[0] / "rows.jsonl").read_text()
    (tmp_path / "rows.jsonl").write_text(rows)
    assert main([str(folders[0]), str(tmp_path), "--out", str(tmp_path / "c.html")]) == 0
    page = (tmp_path / "c.html").read_text()
    assert "figures are not comparable" in page and "no samples in common" in page
    assert 'class="sure"' not in page.partition("<main>")[2] and "MG-Thinker" not in page
    (tmp_path / "rows.jsonl").unlink()
    assert main([str(tmp_path)]) == 0
    assert "rows.jsonl is not there" in (tmp_path / "report.html").read_text()
