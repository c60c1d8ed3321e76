"""Figures in README and docs are those of committed result files, or what the present formulas say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from pages import README, ROOT
from transformers import Qwen2VLConfig

from bench.demo import line as demo_line
from bench.targets import targets
from univg_fast.config import ModelConfig, load_config
from univg_fast.train.memory import Load, memory
from univg_fast.train.shapes import Shape, shape_of


def result_rows(name: str) -> list[dict[str, Any]]:
    """Of a committed result file that the README links to."""
    assert f"(bench/results/{name})" in README
    return [json.loads(text) for text in (ROOT / "bench" / "results" / name).read_text().splitlines()]


def between(mark: str) -> str:
    return README.partition(f"<!-- {mark} -->")[2].partition(f"<!-- /{mark} -->")[0]


def test_the_figures_of_the_first_screen_are_those_of_the_result_files() -> None:
    ops = [row for row in result_rows("cpu_20261121.jsonl") if "status" in row]
    timed = {(row["case"], row["variant"]): row for row in ops if row.get("status") == "timed"}
    reached = {target.what: target.reached for target in targets(ops)}
    scored = reached["10,000 completions parsed and scored: ms of one thread's CPU"]
    cells = []
    for dtype in ("fp32", "bf16"):
        case = f"grpo_loss_{dtype}_512x151936"
        faster = reached[f"{case}: times faster than eager torch, the faster of two"]
        extra = [max(timed[case, name]["extra_bytes"], 0) / 2**20 for name in ("univg cpp", "eager log_softmax")]
        cells.append(f"{faster:.1f} × faster; {extra[0]:.0f} instead of {extra[1]:.0f} MiB")
    case = "linear_grpo_loss_fp32_2560x896x151936_target"
    ours = timed[case, "univg cpp"]
    cells.append(f"{reached[f'{case}: time over three bare products']:.2f} of their time")
    cells.append(
        f"{ours['extra_bytes'] / 2**20:.0f} MiB extra, where all logits take {ours['avoided_bytes'] / 2**20:,.0f}"
    )
    steps, rollout = result_rows("step_cpu_20261121.jsonl"), result_rows("rollout_cpu_20261121.jsonl")
    for rows in (steps, rollout):
        (row,) = (row for row in rows if row["variant"] == "univg")
        cells.append(f"{row['times_wall']:.1f} × faster (CPU time: {row['times_cpu']:.1f} ×)")
    case = "completions_fp32_10000"
    faster = timed[case, "python loop"]["wall_p50_s"] / timed[case, "univg cpp"]["wall_p50_s"]
    cells.append(f"{faster:.1f} × faster; {scored:.0f} ms")
    cells.append(f"{reached['box_iou: times faster than a Python loop']:.0f} × faster")
    share = {row["stage"]: row["share"] for row in result_rows("overhead_cpu_20261121.jsonl") if row["where"] == "demo"}
    cells.append(f"{100 * share['sft']:.1f} % in stage 1, {100 * share['grpo']:.1f} % in stage 2")
    assert [cell for cell in cells if cell not in between("figures")] == []
    origin = {
        (row["hardware"], row["isa"], row["threads"], row["versions"]["torch"]) for row in (*ops, *steps, *rollout)
    }
    assert {(name.split()[0], *rest) for name, *rest in origin} == {("Intel(R)", "AVX512", 1, "2.13.0+cpu")}


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
