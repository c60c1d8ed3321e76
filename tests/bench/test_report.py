"""The command, its file, the document and its picture; and that the committed document says what the code says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import report
from bench.results import newest, read

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of the real command: two small cases."""
    folder = tmp_path_factory.mktemp("results")
    options = ["--device", "cpu", "--size", "tiny", "--without", "torch.compile", "--only", "grpo_loss_fp32", "box_iou"]
    command = [sys.executable, "-m", "bench.ops", *options, "--repeats", "2", "--out", str(folder / "cpu.jsonl")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "univg cpp" in done.stdout and "ceilings measured now" in done.stdout
    return folder


def test_rows_say_where_they_come_from(results: Path) -> None:
    rows = read(results / "cpu.jsonl")
    assert {r["op"] for r in rows} == {"grpo_loss", "box_iou"}
    for row in rows:
        assert row["device"] == "cpu" and row["hardware"] and row["commit"] and row["date"].startswith("20")
        assert row["versions"]["torch"] and row["threads"] >= 1
    assert all(r["rounds"] == 2 for r in rows if r["status"] == "timed")


def test_the_newest_run_of_a_device_counts(results: Path, tmp_path: Path) -> None:
    rows = read(results / "cpu.jsonl")
    for name, date in (("a", "2026-01-02"), ("b", "2026-01-01"), ("old", None)):
        lines = [json.dumps(r | {"date": date} if date else {"case": "x"}) for r in rows]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    ((path, _),) = newest(tmp_path).values()
    assert path.name == "a.jsonl"


def test_document_and_picture(results: Path, tmp_path: Path) -> None:
    found = newest(results)
    text = report.document(found, "LOADS")
    assert "### grpo_loss_fp32_24x331" in text and "| univg cpp | " in text and text.endswith("LOADS")
    assert "liger triton: absent" in text
    assert "Nothing is claimed" in text
    report.draw(found["cpu"][1], tmp_path / "bench_cpu.png")
    from PIL import Image

    with Image.open(tmp_path / "bench_cpu.png") as picture:
        assert picture.width > 800 and len(picture.convert("L").getcolors(256) or []) > 10


def test_a_gpu_run_takes_the_place_of_the_disclaimer(results: Path) -> None:
    path, rows = newest(results)["cpu"]
    gpu: list[dict[str, Any]] = [r | {"device": "cuda", "mode": "hot"} for r in rows]
    text = report.document({"cpu": (path, rows), "cuda": (path, gpu)}, "")
    assert "## CUDA" in text and "Nothing is claimed" not in text and "bench_cuda.png" in text


def test_an_unknown_case_is_an_error_of_one_line() -> None:
    command = [sys.executable, "-m", "bench.ops", "--size", "tiny", "--only", "nonsense"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr == "bench: no case begins with nonsense; --list names them all\n"
