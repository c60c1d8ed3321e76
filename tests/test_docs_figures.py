"""Figures of the demo are those of its result file, and memory is what the formulas say; tables between
`<!-- bench: … -->` are looked at in tests/bench/test_report.py."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from pages import README, ROOT
from transformers import Qwen2VLConfig

from bench.demo import line as demo_line
from univg_fast.config import ModelConfig, load_config
from univg_fast.train.memory import Load, memory
from univg_fast.train.shapes import Shape, shape_of


def result_rows(name: str) -> list[dict[str, Any]]:
    """Of a committed result file that the README links to."""
    assert f"(bench/results/{name})" in README
    return [json.loads(text) for text in (ROOT / "bench" / "results" / name).read_text().splitlines()]


def between(mark: str) -> str:
    return README.partition(f"<!-- {mark} -->")[2].partition(f"<!-- /{mark} -->")[0]


def test_the_figures_of_the_demo_are_those_of_the_result_file() -> None:
    rows, text = result_rows("demo_cpu_20261121.jsonl"), between("demo figures")
    assert re.findall(r"^\| \d.*$", text, re.MULTILINE) == [demo_line(row) for row in rows]
    ends = [
        f"{100 * min(found):.0f}–{100 * max(found):.0f} %"
        for found in ([row["tasks"][stage]["refer_grounding"] for row in rows] for stage in ("sft", "grpo"))
    ]
    image = {stage: f"{100 * value:.0f} %" for stage, value in rows[0]["image_acc"].items()}
    assert f"{ends[0]} after SFT, {ends[1]} after GRPO" in text
    assert f"{image['sft']} name" in text and f"{image['grpo']} after GRPO" in text


def test_the_memory_of_a_7b_is_what_the_formulas_say(tmp_path: Path) -> None:
    text = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28}
    text |= {"num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False}
    vision = {"depth": 32, "embed_dim": 1280, "hidden_size": 3584, "num_heads": 16, "mlp_ratio": 4, "patch_size": 14}
    Qwen2VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False).save_pretrained(tmp_path)
    page = (ROOT / "docs" / "performance.md").read_text()
    rows = re.findall(r"^\| `(univg_r1_stage\d)` \| (.*) \| (\d+) \| (\d+) \|$", page, re.MULTILINE)
    shapes: dict[ModelConfig, Shape] = {}
    assert len(rows) > 10
    for recipe, keys, gpus, gib in rows:
        given = [f"--{key}" for key in re.findall(r"`([^`]+)`", keys)]
        config = load_config(["--config", recipe, f"--model.path={tmp_path}", *given])
        if config.model not in shapes:
            shapes[config.model] = shape_of(config.model, {})
        lines = memory(config.stages[0], config, shapes[config.model], Load.full(config), int(gpus))
        assert f"{lines[-1].value:.0f}" == gib, (recipe, given)
