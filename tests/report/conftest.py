"""A made-up run folder: seeded numbers and answers on crops of scikit-image's photographs; not measured.

And a real browser, which says how it lays a page out.
"""

from __future__ import annotations

import html
import json
import math
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import BROWSER
from PIL import Image, ImageDraw
from skimage import data

from univg_fast.evaluate.metrics import iou, summarize

TASKS = ("group_grounding", "object_tracking", "refer_grounding", "region", "static_diff")
SKILL = {"before": 0.02, "sft": 0.4, "grpo": 0.62}

# The page sits in a frame (a browser's own window is never narrower than 500 px) and posts what it measured.
INNER = """<script>addEventListener("load", () => {
  const over = e => !e.closest(".scroll, pre, svg") && e.getBoundingClientRect().right > innerWidth + 0.5;
  parent.postMessage({
    width: innerWidth,
    page: document.documentElement.scrollWidth,
    over: [...document.querySelectorAll("main *")].filter(over).map(e => e.tagName + "." + e.className),
    fetched: performance.getEntriesByType("resource").map(e => e.name).filter(n => !n.startsWith("data:")),
    blank: [...document.images].filter(i => !i.naturalWidth).length,
    said: SCRIPT}, "*");
})</script></body>"""
OUTER = """<!doctype html><script>
  addEventListener("message", e => { document.title = JSON.stringify(e.data); });
</script><iframe src="page.html" style="width: WIDTHpx; height: 900px; border: 0"></iframe>"""


@pytest.fixture
def lay_out(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """(page, width in px, an expression in JavaScript) -> what INNER measured in it, and the expression's value."""
    if BROWSER is None:
        pytest.skip("no Chromium on PATH: the layout needs a real browser")

    def measure(page: str, width: int, script: str = "null") -> dict[str, Any]:
        open_page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)  # it would stop INNER too
        assert open_page != page
        (tmp_path / "page.html").write_text(
            open_page.replace("</body>", INNER.replace("SCRIPT", script)), encoding="utf-8"
        )
        (tmp_path / "outer.html").write_text(OUTER.replace("WIDTH", str(width)))
        flags = "--headless --no-sandbox --disable-gpu --disable-background-networking --dump-dom"
        flags += " --virtual-time-budget=5000 --window-size=1400,1000"
        command = [str(BROWSER), *flags.split(), f"--user-data-dir={tmp_path}/profile"]
        run = subprocess.run(
            [*command, (tmp_path / "outer.html").as_uri()], capture_output=True, text=True, timeout=400
        )
        found = re.search("<title>(.*)</title>", run.stdout)
        assert found, run.stderr[-2000:]
        return json.loads(html.unescape(found[1]))

    return measure


@pytest.fixture(scope="session")
def make() -> Callable[..., Path]:
    """`make(folder, ...)` writes a run folder of other answers or lengths."""
    return make_run


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "demo")


def make_run(
    folder: Path, steps: tuple[int, int] = (400, 40), samples: int = 60, skill: dict[str, float] = SKILL, seed: int = 7
) -> Path:
    """Write a whole run folder with `steps` of SFT and GRPO and `samples` held-out samples."""
    rng, chance = np.random.default_rng(7), np.random.default_rng(seed)  # the same prompts, other answers
    for name in ("eval", "rollouts", "data"):
        (folder / name).mkdir(parents=True)
    prompts = [make_prompt(folder / "data", i, rng) for i in range(samples)]
    for name, able in skill.items():
        rows = [answer(p, able, chance) for p in prompts]
        (folder / "eval" / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        summary = {"name": name, **summarize(rows), "seconds": 12.3, "protocol": {"decoding": "greedy"}}
        (folder / "eval" / f"{name}.json").write_text(json.dumps(summary))
    lines = [sft_step(i, steps[0], chance) for i in range(1, steps[0] + 1)]
    lines += [grpo_step(i, steps[1], chance) for i in range(1, steps[1] + 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for step in range(5, steps[1] + 1, 5):
        groups = [rollout(prompts[int(rng.integers(samples))], step, step / steps[1], chance) for _ in range(4)]
        path = folder / "rollouts" / f"grpo_{step:06d}.jsonl"
        path.write_text("".join(json.dumps(g) + "\n" for g in groups))
    (folder / "config.yaml").write_text("run: {dir: runs/demo, seed: 42}\nstages: [sft, grpo]\n")
    (folder / "events.jsonl").write_text(json.dumps({"event": "resumed", "stage": "sft", "step": 200}) + "\n")
    versions = {"python": "3.11", "torch": "2.13.0+cpu", "transformers": "5.19.0"}
    (folder / "env.json").write_text(json.dumps({"host_cores": 2, "device": "cpu", "versions": versions}))
    report = {"sft": {"files": {"data/stage1.json": 3000}, "good": 2999, "bad": [{"kind": "missing"}]}}
    (folder / "data_report.json").write_text(json.dumps(report))
    return folder


def make_prompt(folder: Path, i: int, rng: np.random.Generator) -> dict:
    """2 to 4 photo crops of 112 px with a red square on one of them."""
    photos = (data.astronaut(), data.coffee(), data.chelsea(), data.rocket())
    number, images = int(rng.integers(2, 5)), []
    target = int(rng.integers(number))
    x, y, side = (int(v) for v in (*rng.integers(0, 3, 2), rng.integers(1, 3)))
    for k in range(number):
        photo = photos[int(rng.integers(len(photos)))]
        top, left = (int(rng.integers(0, size - 112)) for size in photo.shape[:2])
        image = Image.fromarray(photo[top : top + 112, left : left + 112])
        if k == target:
            ImageDraw.Draw(image).rectangle((x * 28, y * 28, (x + side) * 28, (y + side) * 28), fill="#e03030")
        image.save(folder / f"{i:04d}_{k}.png")
        images.append(f"data/{i:04d}_{k}.png")
    gt = [x * 250, y * 250, (x + side) * 250, (y + side) * 250]
    return {
        "uid": f"eval-{i:04d}",
        "task": TASKS[i % len(TASKS)],
        "images": images,
        "sizes": [[112, 112]] * number,
        "question": "Find the picture that holds the red square, and give the square's box in it.",
        "target_image": target,
        "gt": gt,
    }


def say(prompt: dict, skill: float, rng: np.random.Generator) -> tuple[str, list[int] | None]:
    """A completion and its box: right with chance `skill`, without a box in a tenth of the other cases."""
    image = prompt["target_image"] + 1
    box = list(prompt["gt"])
    if rng.random() > skill:
        image = int(rng.integers(1, len(prompt["images"]) + 1))
        x, y, w, h = (int(v) * 250 for v in (*rng.integers(0, 3, 2), *rng.integers(1, 3, 2)))
        box = [x, y, x + w, y + h]
    thought = f"<think>The red square is in image {image}; it is not in the others.</think>"
    if rng.random() > skill and rng.random() < 0.1:
        return thought, None
    return f"{thought}<answer>({box[0]},{box[1]}),({box[2]},{box[3]})</answer>", box


def answer(prompt: dict, skill: float, rng: np.random.Generator) -> dict:
    text, box = say(prompt, skill, rng)
    score = iou(box, prompt["gt"])
    return {**prompt, "text": text, "box": box, "iou": score, "format": float(box is not None), "tokens": 31}


def rollout(prompt: dict, step: int, progress: float, rng: np.random.Generator) -> dict:
    completions = []
    for _ in range(8):
        text, box = say(prompt, 0.4 + 0.3 * progress, rng)
        parts = {"iou": round(iou(box, prompt["gt"]), 4), "format": float(box is not None)}
        one = {
            "text": text,
            "tokens": 31,
            "finish": "stop" if box else "length",
            "box": box,
            "rewards": parts,
        }
        completions.append({**one, "reward": sum(parts.values()), "logp_mean": -0.3})
    rewards = np.array([c["reward"] for c in completions])
    for c, advantage in zip(completions, (rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-4), strict=True):
        c["advantage"] = float(advantage)
    miou = float(np.mean([c["rewards"]["iou"] for c in completions]))
    group = {"mean": float(rewards.mean()), "std": float(rewards.std(ddof=1)), "weight": math.exp(1 - miou)}
    return {"step": step, **prompt, "miou": miou, "group": group | {"dropped": False}, "completions": completions}


def sft_step(i: int, total: int, rng: np.random.Generator) -> dict:
    return {
        "stage": "sft",
        "step": i,
        "time": 1.79e9 + i,
        "loss": 0.35 + 4 * math.exp(-i / (total / 6)) + 0.05 * rng.normal(),
        "grad_norm": float(abs(1 + 3 * math.exp(-i / 40) + 0.3 * rng.normal())),
        "learning_rate": 1e-3 * (1 + math.cos(math.pi * i / total)) / 2,
        "tokens_per_second": float(5200 + 300 * rng.normal()),
        "dense_tokens_per_second": float(5200 + 300 * rng.normal()),
        "timing_s/data": 0.02,
        "timing_s/update": float(0.85 + 0.02 * rng.normal()),
        "timing_s/step": 0.95,
        "skipped": float(i == 7),
        "saves_failed": float(i > 9),
        "pack/fill": 0.97,
    }


def grpo_step(i: int, total: int, rng: np.random.Generator) -> dict:
    noise, progress = 0.03 * rng.normal(), i / total
    miou = 0.38 + 0.2 * progress + noise
    return {
        "stage": "grpo",
        "step": i,
        "time": 1.79e9 + 500 + 8 * i,
        "loss": float(0.002 * rng.normal()),
        "grad_norm": float(abs(0.6 + 0.1 * rng.normal())),
        "learning_rate": 3e-5,
        "tokens_per_second": float(2100 + 90 * rng.normal()),
        "dense_tokens_per_second": float(7900 + 90 * rng.normal()),
        "prompts_per_second": 2.1,
        "memory/resident_gb": float(1.2 + 0.1 * progress),
        "mfu": float(0.4 + 0.02 * rng.normal()),
        "reward": miou + 0.9 + 0.1 * progress,
        "reward_std": float(0.5 - 0.1 * progress + 0.02 * rng.normal()),
        "reward_group_std": float(0.4 - 0.1 * progress + 0.02 * rng.normal()),
        "frac_reward_zero_std": float(np.clip(0.1 + 0.2 * progress + 0.05 * rng.normal(), 0, 1)),
        "rewards/iou/mean": miou,
        "rewards/format/mean": 0.9 + 0.1 * progress,
        "miou": miou,
        "difficulty_weight": math.exp(1 - miou),
        "kl": float(abs(0.004 * progress + 0.0003 * rng.normal())),
        "entropy": float(0.5 - 0.2 * progress + 0.02 * rng.normal()),
        "clip_ratio/low_mean": 0.0,
        "clip_ratio/high_mean": 0.0,
        "clip_ratio/region_mean": 0.0,
        "completions/mean_length": float(34 + rng.normal()),
        "completions/clipped_ratio": float(max(0.0, 0.05 * (1 - progress) + 0.01 * rng.normal())),
        "sampling/sampling_logp_difference/max": float(2e-5 * math.exp(0.3 * rng.normal())),
        "pack/fill": float(0.93 + 0.02 * rng.normal()),
        "timing_s/data": 0.1,
        "timing_s/gen": float(3.2 + 0.2 * rng.normal()),
        "timing_s/score": 0.01,
        "timing_s/ref": 0.9,
        "timing_s/update": float(3.4 + 0.2 * rng.normal()),
        "timing_s/step": 7.7,
        "bad_records": 0,
    }
