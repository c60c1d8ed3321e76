"""The command, its file, the document and its picture; and that the committed document says what the code says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import report
from bench.blocks import MARK, PAGES, dropins, filled
from bench.results import newest, read
from bench.roofline import draw_roofline, place
from bench.sections import sections

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
    assert path.name == "a.jsonl" and newest(tmp_path, "step") == {}


def test_document_and_picture(results: Path, tmp_path: Path) -> None:
    found = newest(results)
    text = report.document(found, "LOADS")
    assert "### grpo_loss_fp32_24x331" in text and "| univg cpp | " in text and text.endswith("LOADS")
    assert "liger triton: absent" in text
    assert "Nothing is claimed" in text
    report.draw(found["cpu"][1], tmp_path / "bench_cpu.png")
    from PIL import Image

    draw_roofline(found["cpu"][1], tmp_path / "roofline_cpu.png")
    for name in ("bench_cpu", "roofline_cpu"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.width > 800 and len(picture.convert("L").getcolors(256) or []) > 10


def test_a_place_under_the_roof() -> None:
    """Two logits of 8 FLOPs each, read and written in fp32; a product of 3 x 2 x 5 in bf16."""
    row: dict[str, Any] = {"rows": 1, "vocab": 2, "width": 0, "dtype": "fp32", "wall_p50_s": 4.0, "flops": 0}
    assert place(row | {"floor_bytes": 16.0}) == (1.0, 4.0)
    row |= {"rows": 3, "vocab": 5, "width": 2, "dtype": "bf16", "flops": 180.0}
    assert place(row) == (180 / (2 * (3 + 5) * 2 * 2), 45.0)


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter replaces the compiler")
def test_the_page_is_made_of_the_committed_results() -> None:
    """Word for word, but for the registers of a compiled kernel: after new results, `python -m bench.report`."""
    pytest.importorskip("triton", reason="triton is published for Linux only")

    def shape(text: str) -> str:
        return re.sub(r"(\| sm_\d+ \([^|]+\)) \| \d+", r"\1 | some", text)

    committed = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert shape(report.page()) == shape(committed)


@pytest.mark.parametrize("name", PAGES)
def test_tables_in_other_pages_are_made_of_them_too(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert MARK.search(text) and filled(text) == text
    assert filled(MARK.sub(r"\1\3", text)) == text


def test_drop_ins_both_ways(tmp_path: Path) -> None:
    assert dropins(tmp_path).startswith("Nothing is claimed")
    row = dict(newest(bench="step")["cpu"][1][0]) | {"bench": "dropins", "host": "trl", "status": "timed"}
    host = row | {"variant": "host", "wall_p50_s": 0.3, "peak_bytes": 3 * 2**20}
    ours = row | {"variant": "drop-in", "wall_p50_s": 0.2, "peak_bytes": 2**20, "times_wall": 1.5, "times_memory": 3.0}
    absent = row | {"host": "verl", "variant": "", "status": "absent: No module named 'verl'"}
    (tmp_path / "dropins.jsonl").write_text("\n".join(json.dumps(x) for x in (host, ours, absent)))
    text = dropins(tmp_path)
    assert "| trl | 300.000 ms | 200.000 ms | 1.50 | 3 MiB | 1 MiB | 3.00 |" in text and "dropins.jsonl" in text
    assert "| verl | absent: No module named 'verl' |" in text
    (tmp_path / "dropins.jsonl").write_text("\n".join(json.dumps(x | {"times_memory": None}) for x in (host, ours)))
    assert "| 3 MiB | 1 MiB | – |" in dropins(tmp_path)


def test_another_result_is_another_page(tmp_path: Path) -> None:
    path, rows = newest(bench="step")["cpu"]
    for name, times in (("a", 1.0), ("b", 2.0)):
        (tmp_path / name).mkdir()
        lines = [json.dumps(row | {"times_wall": row["times_wall"] * times}) for row in rows]
        (tmp_path / name / path.name).write_text("\n".join(lines))
    committed = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert sections(tmp_path / "a") in committed and sections(tmp_path / "b") not in committed


def test_a_gpu_run_takes_the_place_of_the_disclaimer(results: Path) -> None:
    path, rows = newest(results)["cpu"]
    gpu: list[dict[str, Any]] = [r | {"device": "cuda", "mode": "hot"} for r in rows]
    text = report.document({"cpu": (path, rows), "cuda": (path, gpu)}, "")
    assert "## CUDA" in text and "Nothing is claimed" not in text and "bench_cuda.png" in text


def test_an_unknown_case_is_an_error_of_one_line() -> None:
    command = [sys.executable, "-m", "bench.ops", "--size", "tiny", "--only", "nonsense"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr == "bench: no case begins with nonsense; --list names them all\n"
