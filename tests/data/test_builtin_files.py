"""The files of the built-in data: equal configs give equal bytes, in UniVG-R1's formats."""

import hashlib
import json
import re
from dataclasses import replace

import pytest
from PIL import Image

from univg_fast.data.builtin import TASKS, BuiltinConfig, write_builtin

CONFIG = BuiltinConfig(seed=11, image_size=56, images_per_sample=(2, 4), crops=26, num_sft=80, num_grpo=20, num_eval=40)


def digest(folder):
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def test_same_config_same_bytes_other_seed_other_bytes(tmp_path):
    config = replace(CONFIG, tasks=TASKS, num_sft=10, num_grpo=5, num_eval=5)
    write_builtin(tmp_path / "a", config)
    write_builtin(tmp_path / "b", config)
    write_builtin(tmp_path / "c", replace(config, seed=12))
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    assert digest(tmp_path / "a") != digest(tmp_path / "c")


def test_eval_shares_no_image_with_training(tmp_path):
    write_builtin(tmp_path, replace(CONFIG, tasks=TASKS))
    found = {"sft": set(), "grpo": set(), "eval": set()}
    for name, value in digest(tmp_path / "images").items():
        found[name.split("_")[0]].add(value)
    assert len(found["eval"]) > 60
    assert not found["eval"] & (found["sft"] | found["grpo"])


def test_written_rows_are_in_univg_r1s_formats(builtin_files):
    stage1 = json.loads(builtin_files["sft"].read_text())
    stage2 = json.loads(builtin_files["grpo"].read_text())
    assert [row["type"] for row in stage1[:5]] == list(TASKS)
    for row in stage1:
        human, gpt = row["conversations"]
        assert human["from"] == "human" and human["value"].count("<image>") == len(row["images"])
        assert re.fullmatch(r"<think>.+</think><answer>\(\d+,\d+\),\(\d+,\d+\)</answer>", gpt["value"])
    for row in stage2:
        assert row["question"].startswith("<image>" * len(row["images"]))
        assert all(isinstance(v, int) for v in row["answer"])
    picture = Image.open(builtin_files["sft"].parent / stage1[0]["images"][0])
    assert picture.size == (56, 56) and picture.mode == "RGB"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"lattice": 0}, "data.builtin.lattice: expected at least 1, got 0"),
        ({"frame": 15}, "data.builtin.frame: expected 0 to image_size / 8, got 15"),
        ({"image_size": 110}, "data.builtin.image_size: expected a multiple of lattice=4"),
        (
            {"object_cells": [4]},
            "data.builtin.object_cells: expected sizes from 1 to lattice - max_shift = 3",
        ),
        ({"tasks": ["tracking"]}, "data.builtin.tasks: expected some of group_grounding"),
        ({"num_colours": 9}, "data.builtin.num_colours: expected 2 to 6, got 9"),
        ({"crops": 2}, "data.builtin.crops: expected at least 3"),
    ],
)
def test_a_knob_out_of_range_is_named(changes, expected):
    with pytest.raises(ValueError, match=re.escape(expected)):
        BuiltinConfig(**changes)
