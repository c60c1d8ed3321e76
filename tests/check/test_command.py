"""The whole check: every kind of damage found and named, the page, the exit code, training's own words."""

from __future__ import annotations

import html
import json
import re
import shlex
import subprocess
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path

import pytest
from browser import BROWSER

from univg_fast.check.__main__ import main
from univg_fast.check.page import duration
from univg_fast.config import load_config
from univg_fast.train.setup import prepare

from .conftest import KINDS, SMALL, Data


@pytest.fixture(scope="module")
def checked(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the check of the damaged files, whose exit code is 1."""
    folder = tmp_path_factory.mktemp("run")
    assert main([*data.arguments(folder, data.damaged), "--gpus", "2"]) == 1
    return folder / "check"


@pytest.fixture(scope="module")
def page(checked: Path) -> str:
    return (checked / "check.html").read_text()


def test_every_kind_is_found_once_and_has_its_place(checked: Path, data: Data) -> None:
    report = json.loads((checked / "data_report.json").read_text())
    for use in ("sft", "grpo"):
        assert report[use]["kinds"] == dict.fromkeys(sorted(KINDS), 1)
        places = {entry["kind"]: entry["source"] for entry in report[use]["bad"]}
        assert places == {kind: f"{data.damaged[use]}:{line}" for line, kind in enumerate(KINDS, 1)}
        total = SMALL.num_sft if use == "sft" else SMALL.num_grpo
        assert report[use]["good"] == total - 8 == sum(report[use]["tasks"].values())
        assert sum(report[use]["histograms"]["Prompt length, images included"]["counts"]) == total - 8
        assert report[use]["packing"]["groups"] == total - 8
        assert report[use]["memory_gib"][-1]["name"] == report[use]["hours"][-1]["name"] == "sum"
    assert report["eval"]["kinds"] == {} and report["may_start"] is False and "packing" not in report["eval"]


def test_clean_files_may_be_trained_on(data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*data.arguments(tmp_path, data.clean), "--out", str(tmp_path / "o")]) == 0
    out = capsys.readouterr()
    assert out.err == "" and "packing saves" in out.out and "\r" not in out.out
    assert f"check sft {SMALL.num_sft}/{SMALL.num_sft} | images" in out.out
    assert json.loads((tmp_path / "o" / "data_report.json").read_text())["may_start"] is True
    assert "Training may start." in (tmp_path / "o" / "check.html").read_text()


def test_the_bound_decides(data: Data, tmp_path: Path) -> None:
    assert main(data.arguments(tmp_path, data.damaged, "--data.max_bad_fraction=0.34")) == 0


def test_it_says_what_training_says(data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = data.damaged["sft"].read_text().splitlines()
    bad = tmp_path / "bad.jsonl"  # only what the scan of training sees, too
    bad.write_text("\n".join(row for i, row in enumerate(rows) if KINDS[i : i + 1] not in (("decode",), ("too_long",))))
    files = data.clean | {"sft": bad}
    more = (f"--data.image_root={data.folder}",)
    with pytest.raises(ValueError) as refused:
        prepare(data.config(tmp_path, files, *more), tmp_path)
    capsys.readouterr()
    assert main(data.arguments(tmp_path, files, *more)) == 1
    assert capsys.readouterr().err.endswith(f"error: {refused.value}\n") and "data.max_bad_fraction" in str(
        refused.value
    )


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (("--data.max_pixel=3",), 2, "did you mean 'data.max_pixels'"),
        (("--gpus", "0"), 2, "--gpus: expected a number above 0"),
        (("--data.sft=[]",), 1, "data.sft: expected at least one file for stage sft"),
        (("--data.sft=[nowhere.json]",), 1, "no such file"),
        (("--model.path=nowhere",), 1, "model.path: expected a local folder"),
    ],
)
def test_mistakes(
    data: Data, tmp_path: Path, more: tuple[str, ...], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(data.arguments(tmp_path, data.clean, *more)) == code
    assert said in capsys.readouterr().err


def test_files_without_one_good_record(data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.jsonl").write_text('{"a": 1}\n')
    assert main(data.arguments(tmp_path, data.clean | {"grpo": tmp_path / "empty.jsonl"})) == 1
    assert "1 of 1 records" in capsys.readouterr().err
    files = {use: tmp_path / "empty.jsonl" for use in ("sft", "grpo", "eval")}
    assert main(data.arguments(tmp_path, files)) == 1
    assert "nothing" in (tmp_path / "check" / "check.html").read_text()


class Links(HTMLParser):
    """Everything that a page could fetch."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = ["".join(found) for found in re.findall(r"url\(([^)]*)\)|@import\s+(\S+)", page)]
        self.tags: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.found += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]


def test_the_page_fetches_nothing_and_says_what_was_found(page: str) -> None:
    links = Links(page)
    assert links.found and all(link.startswith("data:image/") for link in links.found)
    assert "script" not in links.tags and len(page) < 4_000_000
    assert "Training may not start yet." in page and "univg_r1_stage1" in page and "univg_r1_stage2" in page
    for title in ("Prompt length", "Response length", "Images per record", "Box sizes", "Packing", "Memory of one GPU"):
        assert f"<h3>{title}" in page
    assert all(f"<summary>{kind}: 1<" in page for kind in KINDS)
    assert page.count("<rect") == 3  # the target of each file's example
    assert "200 TFLOP/s sustained" in page and "Nothing of this was measured here" in page


def test_text_of_the_files_is_escaped(data: Data, tmp_path: Path) -> None:
    rows = json.loads(data.clean["sft"].read_text())
    evil = "<script>alert(1)</script>\x1b"
    rows[0]["conversations"][0]["value"] += evil
    rows[0]["type"] = rows[1]["images"][0] = evil
    (tmp_path / "evil.json").write_text(json.dumps(rows))
    more = (f"--data.image_root={data.folder}", "--stages=[sft]", "--data.max_bad_fraction=0.1")
    assert main(data.arguments(tmp_path, {"sft": tmp_path / "evil.json"}, *more)) == 0
    page = (tmp_path / "check" / "check.html").read_text()
    assert "<script" not in page and "&lt;script&gt;" in page and "\x1b" not in page


def test_rows_over_the_budget_are_named(data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = (f"--data.image_root={data.folder}", "--pack.budget_tokens=100", "--stages=[sft]")
    assert main(data.arguments(tmp_path, data.clean, *more)) == 0
    told = re.findall(
        r"longer than pack.budget_tokens=100: (\S+ \(\S+\): a row of \d+ tokens)", capsys.readouterr().out
    )
    row = json.loads((tmp_path / "check" / "data_report.json").read_text())["sft"]["packing"]
    assert told and told == row["over"] and len(told) == min(20, row["over_budget"])
    assert told[0] in (tmp_path / "check" / "check.html").read_text()


def test_durations_are_said_as_a_person_does() -> None:
    assert [duration(h) for h in (1200.0, 3.25, 0.5, 8 / 3600)] == ["1,200 h", "3.2 h", "30 min", "8 s"]


@pytest.mark.parametrize(("page", "command"), [("check.md", "univg_fast.check"), ("cot.md", "univg_fast.cot")])
def test_the_commands_of_the_documents_are_understood(page: str, command: str) -> None:
    text = (Path(__file__).parents[2] / "docs" / page).read_text().replace("\\\n", " ")
    found = re.findall(rf"^python -m {command} ([^#\n]*)", text, re.MULTILINE)
    assert len(found) >= 2
    for arguments in found:
        given, keys = import_module(f"{command}.__main__").parser().parse_known_args(shlex.split(arguments))
        load_config([*(["--config", given.config] if given.config else []), *keys])


# As in tests/report/test_page.py: the page in a frame tells what it measured.
INNER = """<script>addEventListener("load", () => {
  const over = e => !e.closest("svg") && e.getBoundingClientRect().right > innerWidth + 0.5;
  parent.postMessage({width: innerWidth, page: document.documentElement.scrollWidth,
    over: [...document.querySelectorAll("main *")].filter(over).map(e => e.tagName + "." + e.className),
    fetched: performance.getEntriesByType("resource").map(e => e.name).filter(n => !n.startsWith("data:"))}, "*");
})</script></body>"""
OUTER = """<!doctype html><script>
  addEventListener("message", e => { document.title = JSON.stringify(e.data); });
</script><iframe src="page.html" style="width: WIDTHpx; height: 900px; border: 0"></iframe>"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on PATH: the layout needs a real browser")
@pytest.mark.parametrize("width", [360, 1280])
def test_a_browser_shows_no_overflow_and_requests_nothing(page: str, tmp_path: Path, width: int) -> None:
    open_page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)  # it would stop INNER too
    (tmp_path / "page.html").write_text(open_page.replace("</body>", INNER))
    (tmp_path / "outer.html").write_text(OUTER.replace("WIDTH", str(width)))
    flags = "--headless --no-sandbox --disable-gpu --disable-background-networking --dump-dom --window-size=1400,1000"
    command = [str(BROWSER), *flags.split(), "--virtual-time-budget=5000", f"--user-data-dir={tmp_path}/profile"]
    run = subprocess.run([*command, (tmp_path / "outer.html").as_uri()], capture_output=True, text=True, timeout=400)
    found = re.search("<title>(.*)</title>", run.stdout)
    assert found, run.stderr[-2000:]
    result = json.loads(html.unescape(found[1]))
    assert result["page"] <= result["width"] <= width and (result["over"], result["fetched"]) == ([], [])
