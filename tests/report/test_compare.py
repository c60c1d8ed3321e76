"""The page that compares runs: whose figures it shows, what it calls different, how a browser lays it out."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from univg_fast.evaluate.metrics import paired_difference, percent
from univg_fast.report.__main__ import main
from univg_fast.report.compare import differences, phase_bars, render, speeds, write_comparison
from univg_fast.report.html import mishaps, write_sheet
from univg_fast.report.run import load_run, read_jsonl

BETTER = {"before": 0.02, "sft": 0.4, "grpo": 0.9}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, make: Callable[..., Path]) -> list[Path]:
    """The same prompts: two runs of unlike skill and length; the second has another seed in its configuration."""
    root = tmp_path_factory.mktemp("runs")
    first, second = make(root / "one" / "demo", (40, 10)), make(root / "two" / "demo", (20, 5), skill=BETTER, seed=8)
    config = second / "config.yaml"
    config.write_text(config.read_text().replace("seed: 42", "seed: 43") + "sft: {learning_rate: 1.0e-3}\n")
    return [first, second]


@pytest.fixture(scope="module")
def page(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_comparison(runs, tmp_path_factory.mktemp("out") / "compare.html").read_text(encoding="utf-8")


def test_figures_and_paired_differences_are_those_of_the_evaluations(page: str, runs: list[Path]) -> None:
    answers = [read_jsonl(run / "eval" / "grpo.jsonl", []) for run in runs]
    for run in runs:
        summary = json.loads((run / "eval" / "grpo.json").read_text())
        low, high = summary["acc@0.5_ci95"]
        assert f"<b>{percent(summary['acc@0.5'])}</b> ({percent(low)}–{percent(high)})" in page
    found = paired_difference(answers[1], answers[0])
    low, high = found["ci95"]
    assert low > 0, "the second run was made much better"
    told = f"{100 * found['difference']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
    assert re.search(rf'<span class="sure">{re.escape(told)}</span>', page)
    assert "one/demo" in page and "two/demo" in page, "folders of one name are told apart by their parents"


def test_samples_that_only_one_run_answered_are_not_paired(runs: list[Path]) -> None:
    first, second = (load_run(path) for path in runs)
    for rows in second.answers.values():
        rows[:] = [{**row, "uid": "other-" + row["uid"]} for row in rows]
    text = render({"a": first, "b": second})
    assert text.count("no samples in common") == 3 and 'class="sure"' not in text.partition("<main>")[2]


def test_only_what_differs_is_listed() -> None:
    given = {"a": {"run.dir": "x", "seed": "1", "lr": "2"}, "b": {"run.dir": "y", "seed": "1", "beta": "3"}}
    assert differences(given) == [("lr", {"a": "2", "b": "–"}), ("beta", {"a": "–", "b": "3"})]


def test_configuration_and_environment_of_the_page(page: str) -> None:
    table = page.partition("Differences of configuration")[2].partition("<h2>")[0]
    assert "<small>2 keys</small>" in table and "<td>run.seed</td><td>42</td><td>43</td>" in table
    assert "<td>sft.learning_rate</td><td>–</td><td>0.001</td>" in table
    assert "The environments are the same." in page


def test_speeds_are_medians_and_ratios_to_the_first_run() -> None:
    rows = {"a": [{"tokens_per_second": x} for x in (1, 100, 3)], "b": [{"tokens_per_second": 6.0}, {"mfu": 0.25}]}
    found = dict(speeds(rows))
    assert found["tokens/s"] == {"a": ("3", ""), "b": ("6", "2.00×")}
    assert found["MFU"] == {"b": ("25.0%", "")}


def test_bars_have_one_scale() -> None:
    rows = {
        "a": [{"step": 1, "timing_s/gen": 3.0, "timing_s/update": 1.0, "timing_s/step": 4.0}],
        "b": [{"step": 1, "timing_s/gen": 1.0, "timing_s/other": 1.0, "timing_s/step": 2.0}],
    }
    bars = phase_bars(rows)["bars"]
    assert {name: (total, [(p, round(w)) for p, _, w, _ in bits]) for name, (total, bits) in bars.items()} == {
        "a": (4.0, [("gen", 75), ("update", 25)]),
        "b": (2.0, [("gen", 25), ("other", 25)]),
    }


def test_what_went_wrong_is_told() -> None:
    rows = [{"step": s, "skipped": float(s in (2, 3)), "saves_failed": float(s > 2)} for s in range(1, 5)]
    events = [{"event": "resumed", "stage": stage, "step": step} for stage, step in (("sft", 2), ("grpo", 1))]
    assert mishaps("sft", rows, events) == [
        "2 steps skipped for gradients that were not finite: 2, 3",
        "1 checkpoint could not be written",
        "resumed 1 time, after step 2",
    ]
    assert mishaps("sft", [{"step": 1, "skipped": 0.0}], []) == []


def test_charts_show_every_run(page: str) -> None:
    for title in ("Loss", "Reward and its parts: total", "Reward and its parts: iou", "Throughput: dense", "MFU"):
        assert f"<h3>{title}</h3>" in page, title
    assert "script" not in page and 'src="http' not in page and len(page) < 4_000_000


def test_the_command_compares_several_folders(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "pages" / "both.html"
    assert main([*map(str, runs), "--out", str(out)]) == 0
    assert out.is_file() and str(out) in capsys.readouterr().out
    assert main([str(runs[0]), str(runs[0])]) == 2
    assert "the same folder twice" in capsys.readouterr().err
    assert main([str(runs[0]), str(tmp_path / "nowhere")]) == 2
    assert "nowhere is not a folder" in capsys.readouterr().err


def test_a_run_without_anything_is_compared_all_the_same(runs: list[Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    text = render({"full": load_run(runs[0]), "empty": load_run(tmp_path / "empty")})
    assert "empty: not in the run folder" in text and "<h3>Loss</h3>" in text


@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_lays_it_out(page: str, runs: list[Path], lay_out: Callable, width: int) -> None:
    rows = read_jsonl(runs[0] / "rollouts" / "grpo_000005.jsonl", [])
    sheet = write_sheet(runs[0], "grpo", 5, rows).read_text(encoding="utf-8")
    for text in (page, sheet):
        result = lay_out(text, width)
        assert result["page"] <= result["width"]
        assert (result["over"], result["fetched"], result["blank"]) == ([], [], 0)
