"""Folders that hold no whole model are refused in a line that names them, and not by transformers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from univg_fast.evaluate.load import open_model, run_config
from univg_fast.leaving import is_own_check


def without_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


def unknown(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "moon"}))


def unknown_without_tokenizer(folder: Path) -> None:
    unknown(folder)
    without_tokenizer(folder)


def cut_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_ty')


def cut_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"vers')


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (without_tokenizer, "no token <|image_pad|>); copy tokenizer.json"),
        (cut_tokenizer, "expected a tokenizer of the Qwen2-VL family"),
        (unknown, "model type `moon`"),
        (unknown_without_tokenizer, "['qwen2_5_vl', 'qwen2_vl', 'qwen3_vl']"),
        (cut_config, "not a valid JSON file.); copy it anew"),
    ],
)
def test_a_folder_that_holds_no_model(small: Path, tmp_path: Path, damage: Callable[[Path], None], said: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(small / "model", folder)
    damage(folder)
    config, _ = run_config(str(folder), None, ["--data.prompt_template=short"])
    with pytest.raises(ValueError) as refused:
        open_model(str(folder), config, torch.device("cpu"))
    message = str(refused.value)
    assert message.startswith("model.path: ") and str(folder) in message and said in message and "\n" not in message
    assert is_own_check(refused.value), "the command would show a traceback"
