"""What a real run of both stages shows: metrics of the glossary, times that add up, sheets, a trace, rollouts."""

from __future__ import annotations

import json
import re
import statistics
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

GLOSSARY = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"
# Known to the glossary, and not of this run: no GPU, no dynamic sampling.
ELSEWHERE = r"mfu|memory/(allocated|reserved)_gb|sampling/(draws|kept|wasted)"

pytestmark = pytest.mark.slow


def glossary() -> list[str]:
    """The first column of the tables of metrics; NAME and PHASE stand for anything."""
    text = GLOSSARY.read_text(encoding="utf-8")
    tables = re.findall(r"^\| metric \|.*\n\|.*\n((?:\|.*\n)+)", text, re.MULTILINE)
    return [
        name for table in tables for line in table.splitlines() for name in re.findall("`(.*?)`", line.split("|")[1])
    ]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, trainer: Callable[..., Any]) -> Any:
    return trainer(
        tmp_path_factory.mktemp("runs") / "seen",
        sft__max_steps="4",
        grpo__max_steps="3",
        evaluate__max_samples="2",
        rewards__terms='{"iou": 1.0, "format": 1.0, "length": 1.0}',  # cut-off completions differ from others
        log__sheet_steps="2",
        log__profile__start="2",
        log__profile__steps="1",
    )


def test_the_glossary_knows_every_metric_and_every_metric_of_it_is_logged(run: Any) -> None:
    logged = {key for stage in ("sft", "grpo") for row in run.metrics(stage) for key in row}
    known = glossary()
    patterns = [re.escape(name).replace("NAME", "[^/]+").replace("PHASE", "(?!step|other)[a-z]+") for name in known]
    unknown = [key for key in logged if sum(bool(re.fullmatch(p, key)) for p in patterns) != 1]
    assert unknown == [], "each needs one line of docs/metrics.md"
    gone = [n for n, p in zip(known, patterns, strict=True) if not any(re.fullmatch(p, key) for key in logged)]
    assert [name for name in gone if not re.fullmatch(ELSEWHERE, name)] == []
    assert len(known) == len(set(known)) > 50


def test_the_times_of_a_step_add_up(run: Any) -> None:
    for row in (*run.metrics("sft"), *run.metrics("grpo")):
        parts = {k: v for k, v in row.items() if k.startswith("timing_s/") and k != "timing_s/step"}
        assert sum(parts.values()) == pytest.approx(row["timing_s/step"], rel=1e-6)
        assert min(parts.values()) >= 0 and "timing_s/update" in parts
        assert row["dense_tokens"] >= row["packed_tokens"] >= row["group_tokens"] > row["scored_tokens"] > 0
        assert row["tflops"] > 0 and "mfu" not in row


def test_lengths_and_spreads_are_those_of_the_rollouts(run: Any) -> None:
    """metrics.jsonl against rollouts/, which hold every completion of the last step."""
    row = run.metrics("grpo")[-1]
    lines = (run.folder / "rollouts" / "grpo_000003.jsonl").read_text().splitlines()
    groups = [json.loads(line) for line in lines]
    said = [c for group in groups for c in group["completions"]]
    lengths, ended = [c["tokens"] for c in said], [c["tokens"] for c in said if c["finish"] != "length"]
    assert row["completions/min_length"] == min(lengths) and row["completions/max_length"] == max(lengths)
    assert row["completions/mean_terminated_length"] == pytest.approx(sum(ended) / max(len(ended), 1))
    assert row["completions/clipped_ratio"] == pytest.approx(1 - len(ended) / len(lengths))
    rewards = [c["reward"] for c in said]
    assert row["reward"] == pytest.approx(statistics.mean(rewards), abs=1e-5)
    assert row["reward_std"] == pytest.approx(statistics.stdev(rewards), abs=1e-5)
    assert row["reward_std"] > 0 and row["scored_tokens"] == sum(lengths)
    part = [c["rewards"]["length"] for c in said]
    assert row["rewards/length/std"] == pytest.approx(statistics.stdev(part), abs=1e-5)
    for group in groups:
        assert group["prompt"].count("<|image_pad|>") == len(group["images"]) == len(group["grid"])
        assert set(group["group"]) == {"mean", "std", "weight", "dropped"} and group["coords"] == "norm1000"


def test_a_trace_names_the_phases_of_its_step(run: Any) -> None:
    for stage, least in (("sft", {"data", "update/0", "optim"}), ("grpo", {"data", "gen", "score", "ref", "update/0"})):
        (path,) = (run.folder / "prof").glob(f"{stage}_*")
        events = json.loads(path.read_text())["traceEvents"]
        names = Counter(e["name"] for e in events if e.get("cat") == "user_annotation")
        assert path.name == f"{stage}_rank0.json" and least <= set(names)
        assert names["optim"] == 1, "one step, as asked"
        assert any("addmm" in e["name"] or "aten::mm" in e["name"] for e in events)


def test_a_sheet_shows_the_prompts_of_its_step(run: Any) -> None:
    (path,) = (run.folder / "sheets").iterdir()
    assert path.name == "grpo_000002.html", "stage 1 has no completions, and step 2 of 3 is the only even one"
    page = path.read_text(encoding="utf-8")
    cards = page.split("<article")[1:]
    assert len(cards) == 6 and "data:image/jpeg" in page and 'src="http' not in page
    for card in cards:
        assert sum(map(int, re.findall(r"</span>(\d+)×</td>", card))) == 4, "each completion, equal ones as one"
        assert card.count("<use href=") >= 2 and 'data-name="advantage"' in card and 'data-name="iou"' in card
