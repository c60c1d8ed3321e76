"""Records that the configured rewards cannot score are bad before the first step: for the check and for training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from univg_fast.check.__main__ import main
from univg_fast.config.reward_recipes import RECIPES
from univg_fast.rewards import Settings, score
from univg_fast.train.setup import Inputs, prepare

from .conftest import Data

IMAGES = ("mirg_rl", "mirg_rl_ungated", "mg_thinker")  # these compare images, so that the file must tell them


@pytest.fixture
def untold(data: Data, tmp_path: Path) -> Path:
    """The stage-2 file with two rows as UniVG-R1's has them: several images, and no word of which holds the target."""
    rows: list[dict[str, Any]] = json.loads(data.clean["grpo"].read_text())
    for row in rows[2], rows[4]:
        del row["target_image"]
    assert all(len(row["images"]) > 1 for row in (rows[2], rows[4]))
    path = tmp_path / "untold.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def prepared(data: Data, run: Path, files: dict[str, Path], *more: str) -> Inputs:
    return prepare(data.config(run, files, f"--data.image_root={data.folder}", *more), run)


@pytest.mark.parametrize("name", IMAGES)
def test_check_and_training_refuse_what_a_term_cannot_score(
    data: Data, untold: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    files, more = data.clean | {"grpo": untold}, (f"--rewards.recipe={name}", f"--data.image_root={data.folder}")
    with pytest.raises(ValueError) as refused:
        prepared(data, tmp_path, files, *more)
    message = str(refused.value)
    assert "2 of 24 records" in message and "schema: 2" in message and "more than data.max_bad_fraction" in message
    assert f"{untold}:3 (grpo_000002): reward image_set compares images, and the file does not tell which" in message
    assert (
        f"{untold}:5 (grpo_000004): " in message
        and "write it into the file (target_image, or image of each target)" in message
    )
    if name != "mirg_rl":  # once is enough: the check takes seconds
        return
    capsys.readouterr()
    assert main(data.arguments(tmp_path, files, *more)) == 1
    assert capsys.readouterr().err.endswith(f"error: {message}\n")
    report = json.loads((tmp_path / "check" / "data_report.json").read_text())
    assert report["grpo"]["kinds"] == {"schema": 2} and report["sft"]["kinds"] == {} and not report["may_start"]


def test_below_the_bound_they_are_left_out_and_every_step_can_be_scored(
    data: Data, untold: Path, tmp_path: Path
) -> None:
    more = ("--rewards.recipe=mirg_rl", "--data.max_bad_fraction=0.1")
    records = list(prepared(data, tmp_path, data.clean | {"grpo": untold}, *more).records["grpo"])
    assert len(records) == 22
    recipe = RECIPES["mirg_rl"]
    score(["Image-1: (1,2),(3,4)"] * 22, records, recipe["terms"], Settings(parser=recipe["parser"]))


@pytest.mark.parametrize("name", [name for name in RECIPES if name not in IMAGES])
def test_rewards_that_ask_for_no_image_take_such_files(data: Data, untold: Path, tmp_path: Path, name: str) -> None:
    found = prepared(data, tmp_path, data.clean | {"grpo": untold}, f"--rewards.recipe={name}").records["grpo"]
    assert len(found) == 24


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_just_works_where_the_images_are_known(data: Data, tmp_path: Path, name: str) -> None:
    """Both stages: what the first teaches, the second gives its most."""
    found = prepared(data, tmp_path, data.clean, f"--rewards.recipe={name}").records
    recipe = RECIPES[name]
    taught = list(found["sft"])
    scores = score([str(r.response) for r in taught], taught, recipe["terms"], Settings(parser=recipe["parser"]))
    assert scores.total.tolist() == [len(recipe["terms"])] * len(taught)
    several = [record for use in ("sft", "grpo", "eval") for record in found[use] if len(record.images) > 1]
    assert several and {record.names_images for record in several} == {name not in ("univg_r1", "vlm_r1")}


def test_a_parser_that_reads_no_images_is_refused_with_the_key(data: Data, tmp_path: Path) -> None:
    more = ("--rewards.terms={image: 1.0, iou: 1.0}", "--rewards.parser=univg_r1")
    with pytest.raises(ValueError, match=r"reward image: rewards\.parser=univg_r1 reads one box and no image.*=strict"):
        prepared(data, tmp_path, data.clean, *more)
    prepared(data, tmp_path, data.clean, *more[:1], "--rewards.parser=strict")


def test_stage_1_alone_teaches_what_a_configured_recipe_rewards(data: Data, tmp_path: Path) -> None:
    """Its stage 2 may be another run; without a recipe that wants images, answers stay UniVG-R1's."""
    found = prepared(data, tmp_path, data.clean, "--rewards.recipe=mirg_rl", "--stages=[sft]").records
    several = [record for record in found["sft"] if len(record.images) > 1]
    assert several and all(record.names_images and "Image-" in str(record.response) for record in several)
    found = prepared(data, tmp_path, data.clean, "--stages=[sft]").records
    assert not any(record.names_images for record in found["sft"])
