"""A folder holds one run: another configuration is refused by its keys, a fresh start moves the old one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from univg_fast.config import Config, load_config, to_yaml
from univg_fast.train.previous import settle


def given(folder: Path, *arguments: str) -> Config:
    return load_config(["--config", "demo", f"--run.dir={folder}", *arguments])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.yaml").write_text(to_yaml(given(tmp_path)))
    (tmp_path / "hf" / "sft").mkdir(parents=True)
    return tmp_path


def test_the_same_configuration_goes_on(folder: Path) -> None:
    settle(given(folder), folder)
    settle(given(folder, "--run.max_steps=5", "--log.steps=3", "--stages=[sft]"), folder)
    assert (folder / "hf" / "sft").is_dir()


def test_another_configuration_is_refused_by_key(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"run\.seed was 42, is 1; sft\.learning_rate was 0\.002, is 0\.1.*=never"):
        settle(given(folder, "--run.seed=1", "--sft.learning_rate=0.1"), folder)


def test_never_moves_the_old_run_aside(folder: Path) -> None:
    config = given(folder, "--run.seed=1")
    for number in (1, 2):
        settle(replace(config, run=replace(config.run, resume="never")), folder)
        assert (folder / f"old_{number}" / "hf").is_dir() and not (folder / "hf").exists()
        (folder / "hf").mkdir()
