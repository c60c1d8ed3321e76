"""report.html: what it says, what it never does (network, raw model text), how a real browser lays it out."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from univg_fast.report import write_report
from univg_fast.report.__main__ import main
from univg_fast.report.cards import rollout_cards
from univg_fast.report.overlays import Album
from univg_fast.report.run import load_run


class Links(HTMLParser):
    """Everything a page could fetch: values of href, src and the like, and url() in its styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = re.findall(r"url\(([^)]*)\)|@import\s+(\S+)", page)
        self.tags: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        fetched = ("src", "href", "xlink:href", "srcset", "data", "poster", "action")
        self.found += [value or "" for name, value in attrs if name in fetched]


@pytest.fixture(scope="module")
def page(run_dir: Path) -> str:
    return write_report(run_dir).read_text(encoding="utf-8")


def test_the_page_shows_the_figures_of_the_folder(page: str, run_dir: Path):
    summaries = [json.loads((run_dir / "eval" / f"{n}.json").read_text()) for n in ("before", "sft", "grpo")]
    for summary in summaries:
        assert f"<b>{100 * summary['acc@0.5']:.1f}<small>" in page
        for figures in summary["tasks"].values():
            assert f">{100 * figures['miou']:.1f}</td>" in page
    gain = 100 * (summaries[2]["acc@0.5"] - summaries[1]["acc@0.5"])
    assert f"<strong>{gain:+.1f} points</strong>" in page


def test_every_curve_is_there(page: str):
    titles = "Reward and its parts,mIoU,Difficulty weight,KL,Completion length,Wasted,Clipped,Gradient norm,"
    for title in (titles + "Learning rate,Throughput,Time by phase,Loss").split(","):
        assert f"<h3>{title}" in page, title


def test_the_page_fetches_nothing_and_holds_no_script(page: str):
    links = Links(page)
    assert links.found and all(link.startswith(("data:image/", "#")) for link in links.found)
    assert "script" not in links.tags
    assert len(page) < 4_000_000


def test_cards_show_all_images_truth_and_predictions(page: str, run_dir: Path):
    from univg_fast.report.overlays import PREDICTION_COLOUR, TRUTH_COLOUR

    card = next(c for c in page.split("<article")[1:] if "after GRPO" in c)
    uid = re.search(r"eval-\d+", card)
    assert uid
    row = next(json.loads(t) for t in (run_dir / "eval/grpo.jsonl").read_text().splitlines() if uid[0] in t)
    assert card.count("<use href=") == 3 * len(row["images"])
    assert card.count(f'stroke="{TRUTH_COLOUR}"') == 3 and f'stroke="{PREDICTION_COLOUR}"' in card


def test_a_rollout_card_accounts_for_all_completions(run_dir: Path):
    for card in rollout_cards(load_run(run_dir), Album(run_dir)):
        assert sum(line["times"] for line in card.completions) == card.size == 8
        rewards = [line["reward"] for line in card.completions]
        assert rewards == sorted(rewards, reverse=True)


def test_text_of_models_and_data_is_escaped(tmp_path: Path):
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    row = {"uid": evil, "task": evil, "images": ["no.png"], "question": evil, "target_image": 0, "tokens": 3}
    row |= {"gt": [0, 0, 500, 500], "text": f"<think>{evil}</think>", "box": [1, 1, 9, 9], "iou": 0.1}
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "sft.jsonl").write_text(json.dumps(row))
    (tmp_path / "config.yaml").write_text(evil)
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "<script" not in page and "<img src=x" not in page
    assert "&lt;script&gt;" in page and "not found:" in page


def test_bytes_that_no_page_may_hold_are_replaced(tmp_path: Path):
    row = {"uid": "a", "task": "t", "images": [], "question": "q", "target_image": None, "tokens": 3}
    row |= {"gt": [0, 0, 500, 500], "text": "A\x00B\ud800C\x1bD\nE", "box": None, "iou": 0.0}
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "before.jsonl").write_text(json.dumps(row))
    assert "A\ufffdB\ufffdC\ufffdD\nE" in write_report(tmp_path).read_text(encoding="utf-8")


def test_an_empty_folder_says_what_is_missing(tmp_path: Path):
    page = write_report(tmp_path).read_text(encoding="utf-8")
    for name in (
        "metrics.jsonl",
        "eval/before.json",
        "eval/grpo.json",
        "rollouts/",
        "config.yaml",
        "env.json",
    ):
        assert f"<li>{name} " in page, name
    assert "not been evaluated" in page


def test_a_killed_run_is_readable(tmp_path: Path):
    rows = [{"stage": "sft", "step": s, "loss": v} for s, v in ((1, 2.0), (2, float("nan")), (1, 1.5))]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows) + '{"stage": "sf')
    run = load_run(tmp_path)
    assert [row["loss"] for row in run.metrics["sft"]][:1] == [1.5]  # the step logged again after a resume
    assert "metrics.jsonl:4 is not a JSON object and was skipped" in run.notes
    assert "<h3>Loss" in write_report(tmp_path).read_text(encoding="utf-8")


def test_the_album_embeds_a_file_once_and_keeps_its_budget(run_dir: Path):
    album = Album(run_dir, budget=1)
    assert album.add("data/0000_0.png") is album.add("data/0000_0.png")
    assert album.full and len(rollout_cards(load_run(run_dir), album)) == 0


def test_same_folder_same_bytes(run_dir: Path, page: str):
    assert write_report(run_dir).read_text(encoding="utf-8") == page


def test_the_command_names_a_folder_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main([str(tmp_path / "nowhere")]) == 2
    assert "nowhere is not a folder" in capsys.readouterr().err
    assert main([str(tmp_path)]) == 0
    assert str(tmp_path / "report.html") in capsys.readouterr().out


@pytest.mark.parametrize("width", [360, 400, 1280])
def test_a_browser_shows_no_overflow_and_requests_nothing(page: str, lay_out: Callable, width: int):
    result = lay_out(page, width)
    # a vertical scrollbar may take a few px of the frame
    assert width - 20 <= result["width"] <= width and result["page"] <= result["width"]
    assert (result["over"], result["fetched"], result["blank"]) == ([], [], 0)
