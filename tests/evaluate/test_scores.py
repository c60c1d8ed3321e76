"""The scores of files of predictions: those of an independent scorer, to the last digit."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from second_scorer import scores

from univg_fast.evaluate.__main__ import main
from univg_fast.evaluate.benchmarks import MIG_TASKS

ENTRIES = 5000  # of each protocol; each is answered once and read by three parsers


def near(rng: random.Random, truth: list[float]) -> list[int]:
    """A box about `truth`, in thousandths; sometimes inverted, without width, or far out of the image."""
    spread = rng.choice((0, 5, 60, 300))
    box = [max(0, round(v) + rng.randint(-spread, spread)) for v in truth]
    if rng.random() < 0.03:
        box = [box[2], box[1], box[0], box[3]]
    if rng.random() < 0.03:
        box[2] = box[0]
    if rng.random() < 0.03:
        box[rng.randrange(4)] = rng.choice((1000, 1001, 4096, 10**10, 10**18))
    return box


def spell(rng: random.Random, box: list[int]) -> str:
    a, b, c, d = box
    comma = rng.choice((",", ", ", ",  ", ",\n"))
    f = [f"{v / 1000:.{rng.choice((1, 3, 4, 12))}f}" for v in box]
    return rng.choice(
        [f"({a},{b}),({c},{d})"] * 6
        + [f"({a}{comma}{b}){comma}({c}{comma}{d})", f"[{a}{comma}{b}{comma}{c}{comma}{d}]", f"({a}, {b}, {c}, {d})"]
        + [f"<|box_start|>({a},{b}),({c},{d})<|box_end|>", f"<box>{a} {b} {c} {d}</box>", f"[[{a}, {b}, {c}, {d}]]"]
        + [f"[{f[0]}, {f[1]}, {f[2]}, {f[3]}]", f"({f[0]},{f[1]}),({f[2]},{f[3]})", f"({f[0]}, {f[1]}, {f[2]}, {f[3]})"]
        + [f"({a} ,{b}),({c},{d})", f"({a},{b})({c},{d})", f"({a}.5,{b}),({c},{d}.25)", f"({a},-{b}),({c},{d})"]
        + [f'{{"bbox_2d": [{a}, {b}, {c}, {d}], "label": "x"}}', f"{a} {b} {c} {d}", f"[{a}, {b}, {c}, {d}, 5]"]
        + [f"({a},{b}),({c},{d}", "the cat", ""]
    )  # fmt: skip


def answer(rng: random.Random, truth: list[float]) -> str:
    thought, one, two = (spell(rng, near(rng, truth)) for _ in range(3))
    return rng.choice(
        [f"<think>It is in Image-2.</think>\n<answer>{one}</answer>"] * 5
        + [f"<think>{thought}</think><answer>{one}</answer>"] * 2
        + [f"<answer>{one} {two}</answer>", f"<answer>{one}, {two}, {thought}</answer>", one, f"{one} or {two}"]
        + [f"<think>a</think><answer>{one}", f"{one}</answer>", f"<answer>{one}</answer><answer>{two}</answer>"]
        + [f"<answer>{one}</answer> rather <answer>{two}", f"<answer>a<answer>{one}</answer>{two}</answer>", ""]
        + [f"<answer></answer>{one}", f"<Answer>{one}</Answer>", f"<answer>{one}\n</answer>\n", "<answer>" * 40 + one]
    )


@pytest.fixture(scope="module", params=["original", "revised"])
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    """(protocol, benchmark, predictions): also degenerate answers, as the original set has, and none predicted."""
    rng, folder = random.Random(7), tmp_path_factory.mktemp(request.param)
    entries, lines = [], []
    for i in range(ENTRIES):
        x, y = rng.randint(0, 900), rng.randint(0, 900)
        truth: list[float] = [x, y, rng.randint(x + (i % 500 > 0), 1000), rng.randint(y + 1, 1000)]
        said = answer(rng, truth)
        if request.param == "original":
            truth = [v / 1000 + rng.choice((0, 0, rng.random() / 1000)) for v in truth]
            truth[3] = 1.002 if i == 17 else truth[3]
        images = [f"a{k}.jpg" for k in range(rng.randint(2, 5))]
        task = rng.choice(list(MIG_TASKS))
        entries.append({"id": f"q{i}", "task": task, "images": images, "question": "Where is it in Image-2?",
                        "answer": truth, "additional_info": "", "need_format": True})  # fmt: skip
        if i % 50:
            lines.append({"id": f"q{i}", "text": said})
    rng.shuffle(lines)
    (folder / "data.json").write_text(json.dumps(entries))
    (folder / "said.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return request.param, folder / "data.json", folder / "said.jsonl"


@pytest.mark.parametrize("parser", ["answer_tag", "univg_r1", "migician"])
def test_mig_bench_as_an_independent_scorer(files: Any, parser: str, tmp_path: Path) -> None:
    protocol, data, said = files
    arguments = ["--benchmark", "mig_bench", "--data", data, "--predictions", said, "--parser", parser]
    assert main([*map(str, arguments), "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "results.json").read_text())
    want = scores(data, said, protocol, parser)
    assert (result["protocol"], result["parser"], result["n"]) == (protocol, parser, ENTRIES)
    assert {t: {m: f[m] for m in want["micro"]} for t, f in result["tasks"].items()} == want["tasks"]
    assert {m: result["macro"][m] for m in want["macro"]} == want["macro"]
    assert {m: result[m] for m in want["micro"]} == want["micro"]
    assert result["counts"]["no_box"] == want["no_box"]
    assert result["predictions"]["missing"] == ENTRIES // 50
    assert 0.05 < result["acc@0.5"] < 0.95 and result["macro"]["tasks"] == 10
    low, high = result["macro"]["acc@0.5_ci95"]
    assert low < result["macro"]["acc@0.5"] < high
