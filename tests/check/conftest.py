"""A folder with one record of every kind of damage, and configurations that read it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from univg_fast.config import Config, load_config
from univg_fast.data.builtin import BuiltinConfig, write_builtin

KINDS = ("json", "schema", "missing", "decode", "aspect", "count", "box", "too_long")
SMALL = BuiltinConfig(image_size=84, lattice=3, object_cells=(1,), crops=8, num_sft=40, num_grpo=24, num_eval=6)


@dataclass(frozen=True)
class Data:
    """`clean` and `damaged`: use -> file. The first records of a damaged file are bad as KINDS says, in its order."""

    folder: Path
    clean: dict[str, Path]
    damaged: dict[str, Path]

    def config(self, run_dir: Path, files: dict[str, Path], *more: str) -> Config:
        return load_config(self.arguments(run_dir, files, *more))

    def arguments(self, run_dir: Path, files: dict[str, Path], *more: str) -> list[str]:
        uses = [f"--data.{use}=[{path}]" for use, path in files.items()]
        return ["--config=demo", "--data.builtin=null", f"--run.dir={run_dir}", "--data.max_length=400", *uses, *more]


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    folder = tmp_path_factory.mktemp("data")
    clean = write_builtin(folder, SMALL)
    damaged = {"eval": clean["eval"]}
    for use in ("sft", "grpo"):
        rows = json.loads(clean[use].read_text())
        damaged[use] = folder / f"{use}_damaged.jsonl"
        damaged[use].write_text("\n".join(spoil(folder, rows, use)) + "\n")
    return Data(folder, clean, damaged)


def spoil(folder: Path, rows: list[dict[str, Any]], use: str) -> list[str]:
    """The rows as lines, the first eight of them bad; their images are copies, so that the clean files stay clean."""
    question = (lambda row: row["conversations"][0]) if use == "sft" else (lambda row: row)
    key = "value" if use == "sft" else "question"
    del rows[1]["conversations" if use == "sft" else "question"]
    rows[2]["images"][0] = "images/nowhere.png"
    rows[3]["images"][0] = f"images/{use}_cut.png"
    whole = (folder / "images" / f"{use}_000000_1.png").read_bytes()
    (folder / rows[3]["images"][0]).write_bytes(whole[: len(whole) // 2])
    rows[4]["images"][0] = f"images/{use}_thin.png"
    Image.new("RGB", (2, 900)).save(folder / rows[4]["images"][0])
    question(rows[5])[key] = "<image>" + question(rows[5])[key]
    if use == "sft":
        rows[6]["conversations"][1]["value"] = "<think>a</think><answer>(500,100),(500,400)</answer>"
    else:
        rows[6]["answer"] = [500, 100, 500, 400]
    question(rows[7])[key] += " 12" * 400
    lines = [json.dumps(row) for row in rows]
    return [lines[0][:50], *lines[1:]]
