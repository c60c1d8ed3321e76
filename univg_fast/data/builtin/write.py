"""Write the built-in data set as PNG files and JSON files in UniVG-R1's formats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from univg_fast.data.prompts import COT_SUFFIX

from .config import BuiltinConfig
from .pictures import make_crops
from .tasks import MAKERS, Draft, Scene

SPLITS = ("sft", "grpo", "eval")  # the position is part of the random stream: append, never reorder


def drafts(config: BuiltinConfig, split: str) -> Any:
    """Yield (task, Draft) of one split. Sample i depends on (config, split, i) and on nothing else."""
    stream = SPLITS.index(split)
    side = (config.lattice + config.max_shift) * config.cell
    crops = make_crops(np.random.default_rng([config.seed, stream]), config.crops, side, config.background)
    tasks = config.sft_tasks if split == "sft" and config.sft_tasks else config.tasks
    for i in range(getattr(config, f"num_{split}")):
        task = tasks[i % len(tasks)]
        yield task, MAKERS[task](Scene(np.random.default_rng([config.seed, stream, i]), config, crops))


def answer_text(draft: Draft) -> str:
    """The stage-1 target."""
    x1, y1, x2, y2 = draft.box
    return f"<think>{draft.think}</think><answer>({x1},{y1}),({x2},{y2})</answer>"


def write_builtin(folder: str | Path, config: BuiltinConfig) -> dict[str, Path]:
    """Write `images/*.png`, stage1.json, stage2.json and eval.json; return them by "sft", "grpo", "eval".

    Image paths in the files are relative to the folder. `target_image` counts from 0. The bytes depend on the
    config (and on the versions of NumPy and Pillow) only. ValueError where a knob is out of range is raised
    by BuiltinConfig.
    """
    folder = Path(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    files = {"sft": folder / "stage1.json", "grpo": folder / "stage2.json", "eval": folder / "eval.json"}
    for split, path in files.items():
        rows = []
        for i, (task, draft) in enumerate(drafts(config, split)):
            names = [f"images/{split}_{i:06d}_{k + 1}.png" for k in range(len(draft.images))]
            for name, image in zip(names, draft.images, strict=True):
                Image.fromarray(image).save(folder / name, compress_level=1)
            row = stage1_row if split == "sft" else stage2_row
            rows.append(row(f"{split}_{i:06d}", task, draft, names))
        text = ",\n".join(json.dumps(row) for row in rows)
        path.write_text(f"[\n{text}\n]\n", encoding="utf-8")
    return files


def stage1_row(uid: str, task: str, draft: Draft, names: list[str]) -> dict[str, Any]:
    question = "<image>\n" * len(names) + draft.question + COT_SUFFIX
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer_text(draft)}]
    return {
        "id": uid,
        "images": names,
        "conversations": turns,
        "type": task,
        "target_image": draft.target_image,
    }


def stage2_row(uid: str, task: str, draft: Draft, names: list[str]) -> dict[str, Any]:
    question = "<image>" * len(names) + draft.question
    row = {"id": uid, "question": question, "answer": list(draft.box), "images": names}
    return row | {"task": task, "target_image": draft.target_image}
