"""What a model is asked with: the configuration of its own run, and the form of answers that it was taught."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from univg_fast.config import ConfigError, load_config, to_yaml
from univg_fast.data.prompts import INSTRUCTIONS, instruction
from univg_fast.evaluate.__main__ import main
from univg_fast.evaluate.ask import form_of, settings_of
from univg_fast.evaluate.items import Form, Item, Truth, item_of, record_of, without_reasoning
from univg_fast.evaluate.load import open_model, run_config, weights_of
from univg_fast.structs import Record, Target


def test_a_model_of_a_run_is_asked_as_the_run_says(tmp_path: Path) -> None:
    model = tmp_path / "run" / "hf" / "grpo"
    model.mkdir(parents=True)
    config = load_config(["--data.max_pixels=12544", "--data.prompt_template=short", "--evaluate.max_samples=3"])
    (tmp_path / "run" / "config.yaml").write_text(to_yaml(config))
    found, source = run_config(str(model), None, ["--evaluate.max_completion_length=9"])
    assert found.data == config.data and found.evaluate.max_completion_length == 9
    assert source == str((tmp_path / "run" / "config.yaml").resolve())
    assert settings_of(found)["max_pixels"] == 12544
    assert found.evaluate.max_samples is None  # the trainer's glance is no denominator of a benchmark
    assert run_config(str(model), None, ["--evaluate.max_samples=5"])[0].evaluate.max_samples == 5
    assert run_config(str(model), source, [])[0].evaluate.max_samples == 3  # asked for by its name
    other, source = run_config(str(tmp_path), None, [])
    assert other == load_config([]) and source == "the defaults"
    with pytest.raises(ConfigError, match="expected --section.key=value, got data"):
        run_config(str(tmp_path), None, ["data"])
    with pytest.raises(ValueError, match="--model: expected a folder with a config.json"):
        open_model(str(model), found, None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="--model: expected a folder with a config.json, got 'nowhere'"):
        weights_of("nowhere")


def test_answers_are_asked_for_in_the_form_that_was_taught() -> None:
    config = load_config(["--rewards.recipe=mirg_rl"])
    assert form_of(config) == Form(None, True) and form_of(load_config([])) == Form(None, False)
    item = Item("a", "f:1", "diff", ("a.png", "b.png"), "<image><image>Where?", (Truth((0.1, 0.1, 0.5, 0.5), 1),))
    assert record_of(item).question == "Where?"
    assert instruction(record_of(item)) == INSTRUCTIONS["univg_r1", "box"][0]
    assert instruction(record_of(item, Form(None, True))) == INSTRUCTIONS["univg_r1", "image"][0]
    assert instruction(record_of(item, Form("bbox_2d"))) == INSTRUCTIONS["bbox_2d", False, True][0]


def test_a_record_of_the_trainer_is_asked_as_in_training() -> None:
    targets = (Target((1, 2, 3, 4), 0, "cup"), Target((5, 6, 7, 8), 1, "hat"))
    record = Record("a", "f:1", ("a.png", "b.png"), "Both?", targets, answer_style="bbox_2d", cot=False)
    assert record_of(item_of(record)) == record


def test_a_direct_answer_is_asked_for_without_reasoning_and_needs_no_tags(tmp_path: Path) -> None:
    truth = (Truth((0.1, 0.1, 0.5, 0.5), 1),)
    items = [Item("a", "f:1", "diff", ("a.png", "b.png"), "Where?", truth),
             item_of(Record("b", "f:2", ("a.png",), "Where?", (Target((1, 2, 3, 4), 0),)))]  # fmt: skip
    assert [record_of(item).cot for item in without_reasoning(items)] == [False, False]
    assert all(record_of(item).cot for item in items)
    entry = {"images": ["a.png"], "question": "Where?", "targets": [{"box": [100, 100, 300, 300]}], "task": "t"}
    (tmp_path / "data.json").write_text(json.dumps([entry]))
    (tmp_path / "said.jsonl").write_text('{"text": "(100,100),(300,300)"}')
    given = {"--data": tmp_path / "data.json", "--predictions": tmp_path / "said.jsonl", "--out": tmp_path / "out"}
    words = ["--benchmark", "records", *[str(word) for pair in given.items() for word in pair]]
    for more, figure in (([], 0.0), (["--direct"], 1.0)):
        assert main([*words, *more]) == 0
        result = json.loads((tmp_path / "out" / "results.json").read_text())
        assert result["miou"] == result["format"] == figure and result.get("direct", False) == bool(more)
