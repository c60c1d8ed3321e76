"""A small built-in data set on disk, and helpers that break it."""

import json
from pathlib import Path

import pytest
from PIL import Image

from univg_fast.data.builtin import TASKS, BuiltinConfig, write_builtin
from univg_fast.data.prompts import corpus
from univg_fast.data.records import read_records
from univg_fast.data.samples import make_processor
from univg_fast.data.tokenizer import build_tokenizer

SMALL = BuiltinConfig(
    seed=3,
    tasks=TASKS,
    image_size=56,
    images_per_sample=(2, 4),
    crops=26,
    num_sft=60,
    num_grpo=30,
    num_eval=30,
)


@pytest.fixture(scope="session")
def builtin_files(tmp_path_factory):
    return write_builtin(tmp_path_factory.mktemp("builtin"), SMALL)


@pytest.fixture(scope="session")
def records(builtin_files):
    return read_records(builtin_files["sft"])[0]


@pytest.fixture(scope="session")
def tokenizer(records):
    return build_tokenizer(corpus(records))


@pytest.fixture(scope="session")
def processor(tokenizer):
    return make_processor(tokenizer, prompt_template="short")


class Folder:
    """A folder with two good images; `stage2(...)` and `stage1(...)` give good rows to be broken."""

    def __init__(self, path: Path):
        self.path = path
        for name, colour in (("a.png", "navy"), ("b.png", "gold")):
            Image.new("RGB", (60, 40), colour).save(path / name)

    def stage2(self, **changes) -> dict:
        row = {
            "question": "<image><image>Where is it?",
            "answer": [0, 0, 500, 250],
            "images": ["a.png", "b.png"],
        }
        return row | changes

    def stage1(self, question="<image>\n<image>\nWhere is it?", response=None, **changes) -> dict:
        response = response or "<think>It is in image 1.</think><answer>(0,0),(500,250)</answer>"
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": response}]
        return {"id": "one", "images": ["a.png", "b.png"], "conversations": turns} | changes

    def jsonl(self, *rows: dict | str) -> Path:
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        return self.write("data.jsonl", "\n".join(lines) + "\n")

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


@pytest.fixture
def disk(folder):
    """With the other images that the rows of examples.py name."""
    (folder.path / "video").mkdir()
    for name in ("3.jpg", "1.jpg", "2.jpg"):
        Image.new("RGB", (60, 40)).save(folder.path / "video" / name)
    Image.new("RGB", (100, 80)).save(folder.path / "c.png")
    return folder
