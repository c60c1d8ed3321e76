"""Configuration: what wins over what, and one clear message for every mistake."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from univg_fast.config import Config, ConfigError, SftConfig, config_hash, load_config, recipe_names, to_yaml


@pytest.fixture
def yaml_file(tmp_path: Path) -> Any:
    def write(text: str) -> Path:
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return path

    return write


def error(*argv: object) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config([str(a) for a in argv])
    return str(caught.value)


def test_command_line_wins_over_yaml_over_defaults(yaml_file: Any) -> None:
    path = yaml_file("sft:\n  learning_rate: 1e-3\n  weight_decay: 0.5\n")
    config = load_config(["--config", str(path), "--sft.learning_rate=2e-4", "--grpo.top_k", "50"])
    assert config.sft.learning_rate == 2e-4
    assert config.sft.weight_decay == 0.5
    assert config.sft.warmup_ratio == SftConfig().warmup_ratio
    assert config.grpo.top_k == 50
    assert load_config(["--sft.learning_rate=2e-4", f"--config={path}"]).sft.learning_rate == 2e-4


def test_types_arrive_as_declared(yaml_file: Any) -> None:
    path = yaml_file(
        "run: {max_steps: null}\nstages: [grpo]\ndata: {sft: [a.json, b.json]}\nsft: {warmup_ratio: 1}\n"
        "deepspeed:\n  config: {zero_optimization: {reduce_bucket_size: 1e6}}\n"
    )
    config = load_config([f"--config={path}", "--model.freeze_vision_tower=false", "--data.eval=[c.json]"])
    assert config.stages == ("grpo",) and config.data.sft == ("a.json", "b.json")
    assert config.data.eval == ("c.json",) and config.model.freeze_vision_tower is False
    assert isinstance(config.sft.warmup_ratio, float) and config.run.max_steps is None
    assert config.deepspeed.config == {"zero_optimization": {"reduce_bucket_size": 1e6}}


def test_one_entry_of_a_mapping_from_the_command_line() -> None:
    config = load_config(["--rewards.terms.iou=2", "--deepspeed.config.comms_logger.enabled=true"])
    assert config.rewards.terms == {"iou": 2.0, "format": 1.0}
    assert config.deepspeed.config == {"comms_logger": {"enabled": True}}
    assert load_config([]).rewards.terms == {"iou": 1.0, "format": 1.0}, "the default must not be touched"


def test_optional_section_is_built_only_when_asked_for() -> None:
    assert load_config([]).data.builtin is None
    built_in = load_config(["--data.builtin.num_sft=7"]).data.builtin
    assert built_in is not None and built_in.num_sft == 7 and built_in.lattice > 1
    assert load_config(["--data.builtin={}"]).data.builtin == dataclasses.replace(
        built_in, num_sft=type(built_in)().num_sft
    )
    assert load_config(["--config=demo", "--data.builtin=null"]).data.builtin is None
    assert load_config(["--config=demo"]).data.builtin != type(built_in)(), "the demo sets keys there"
    assert load_config(["--config=demo", "--data.builtin={}"]).data.builtin == type(built_in)()


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_loads_and_its_resolved_yaml_reads_back_equal(name: str, yaml_file: Any) -> None:
    config = load_config(["--config", name])
    assert config != Config()
    assert load_config(["--config", str(yaml_file(to_yaml(config)))]) == config


def test_published_values_of_the_recipes() -> None:
    one, two = load_config(["--config=univg_r1_stage1"]), load_config(["--config=univg_r1_stage2"])
    assert (one.sft.learning_rate, one.sft.warmup_ratio, one.sft.per_step_samples) == (5e-6, 0.015, 24)
    assert (one.data.max_length, one.data.max_pixels, one.model.freeze_vision_tower) == (6000, 401408, True)
    assert (two.grpo.learning_rate, two.grpo.beta, two.grpo.num_generations) == (1e-6, 0.04, 8)
    assert (two.grpo.prompts_per_step, two.grpo.temperature, two.grpo.difficulty) == (16, 1.0, "exp")
    assert (two.grpo.max_completion_length, two.grpo.lr_scheduler_type) == (256, "linear")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\nsft:\n  learning_rat: 3\n", ":3: unknown key 'sft.learning_rat'; did you mean 'sft.lea"),
        ("sff:\n  learning_rate: 3\n", ":1: unknown key 'sff'; did you mean 'sft'?"),
        ("learning_rate: 3\n", ":1: unknown key 'learning_rate'; did you mean 'sft.learning_rate'?"),
        ("data:\n  builtin:\n    latice: 5\n", ":3: unknown key 'data.builtin.latice'; did you mean 'data."),
        ("model:\n  zzz: 5\n", ":2: unknown key 'model.zzz'; model has: path, torch_dtype, "),
        ("\nsft:\n  max_steps: fast\n", ":3: sft.max_steps: expected an int or null, got 'fast'"),
        ("sft:\n  max_steps: 2.5\n", ":2: sft.max_steps: expected an int or null, got 2.5"),
        ("run:\n  seed: null\n", ":2: run.seed: expected an int, got null"),
        ("run:\n  seed: true\n", ":2: run.seed: expected an int, got True"),
        ("sft: 3\n", ":1: sft: expected a mapping of keys, got 3"),
        ("- a\n", ":1: the file: expected a mapping of keys, got ['a']"),
        ("grpo:\n  difficulty: exq\n", "exp, power, log, none, got 'exq'; did you mean 'exp'?"),
        ("data:\n  sft: a.json\n", "to anything, got 'a.json'; a list of one is written [a.json]"),
        ("rewards:\n  terms: {iou: much}\n", "a mapping of a string to a float, got {'iou': 'much'}"),
        ("sft:\n\n  learning_rate: -1\n", ":3: sft.learning_rate: expected a number > 0, got -1.0"),
        ("sft:\n  learning_rate: .nan\n", ":2: sft.learning_rate: expected a number > 0, got nan"),
        (
            "model:\n  freeze_vision_tower: false\n  lora: {r: 8}\n",
            ":2: model.freeze_vision_tower: expected true beside model.lora, which trains adapters of the language "
            "model alone, got false; add --model.freeze_vision_tower=true, or name what ",
        ),
        ("grpo:\n  top_p: 1.5\n", ":2: grpo.top_p: expected a number > 0 and <= 1, got 1.5"),
        (
            "deepspeed:\n  config: {zero_optimization: {stage: 2}}\n",
            "expected no zero_optimization.stage (2), which the trainer sets; use deepspeed.zero_stage",
        ),
        (
            "deepspeed:\n  config: {gradient_accumulation_steps: 4}\n",
            ":2: deepspeed.config: expected no gradient_accumulation_steps (4), which the trainer sets; use",
        ),
        ("deepspeed:\n  config: {optimizer: {type: Adam}}\n", "which the trainer sets; use the keys of sft and grpo"),
        (
            "deepspeed:\n  config: {zero_optimization: {offload_optimizer: {device: moon}}}\n",
            ":2: deepspeed.config: expected zero_optimization.offload_optimizer to have as device one of none, cpu, "
            "nvme, got {'device': 'moon'}",
        ),
        ("deepspeed: {config: {zero_optimization: {offload_optimizer: cpu}}}\n", "one of none, cpu, nvme, got 'cpu'"),
        ("deepspeed:\n  config: {zero_optimization: 3}\n", "zero_optimization to be a mapping of keys, got 3"),
        ("deepspeed:\n  zero_stage: 4\n", ":2: deepspeed.zero_stage: expected a number >= 0 and <= 3, got 4"),
        ("pack:\n  window: -1\n", ":2: pack.window: expected a number >= 0, got -1"),
        ("data: {builtin: {lattice: 0}}\n", ":1: data.builtin.lattice: expected "),
        ('rollout: {stop_strings: [""]}\n', ":1: rollout.stop_strings: expected texts of at least one character"),
        ("rollout:\n  cache_gib: 0\n", ":2: rollout.cache_gib: expected a number > 0, got 0"),
        ("stages: []\n", ":1: stages: expected at least one of sft, grpo"),
        ("rewards: {difficulty_from: giou}\n", ":1: rewards.difficulty_from: expected one of "),
        ("run:\n  seed: 1\n  seed: 2\n", ":3: run.seed stands twice"),
        ("run: [1\n", "not valid YAML"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_yaml_is_named_with_its_line(yaml_file: Any, text: str, message: str) -> None:
    path = yaml_file(text)
    told = error("--config", path)
    assert message in told
    assert str(path) in told and "\n" not in told


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--sft.learning_rte=1"], "argument --sft.learning_rte=1: unknown key 'sft.learning_rte'; did"),
        (["--sft.learning_rte", "1"], "did you mean 'sft.learning_rate'?"),
        (["--sft.learning_rte"], "did you mean 'sft.learning_rate'?"),
        (["--sft.max_steps=x"], "argument --sft.max_steps=x: sft.max_steps: expected an int or null"),
        (["--sft.max_steps"], "argument --sft.max_steps: expected a value"),
        (["--sft=3"], "sft is a section; set its keys one by one: max_steps, "),
        (["sft"], "argument 'sft': expected --config NAME or --section.key=value"),
        (["--config", "demoo"], "no such file and no such recipe; recipes: dapo, demo, "),
        (["--data.min_pixels=999999999"], "expected at most data.max_pixels (401408), got 999999999"),
        (["--data.builtin={}", "--data.sft=[a]"], "data.builtin: expected null where data.sft"),
    ],
)  # fmt: skip
def test_a_mistake_on_the_command_line_is_named(argv: list[str], message: str) -> None:
    assert message in error(*argv)


def test_config_made_in_code_is_checked_too() -> None:
    with pytest.raises(ValueError, match="sft.learning_rate: expected a number > 0, got 0"):
        Config(sft=SftConfig(learning_rate=0.0))
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().run.seed = 3  # type: ignore[misc]


def test_hash_changes_with_what_decides_the_numbers_only() -> None:
    base = config_hash(load_config([]))
    assert (
        config_hash(
            load_config(["--run.dir=x", "--run.resume=never", "--save.steps=3", "--log.steps=2", "--data.cache_dir=x"])
        )
        == base
    )
    assert config_hash(load_config(["--run.seed=1"])) != base
    assert config_hash(load_config(["--grpo.beta=0"])) != base


def test_help_lists_every_key_with_its_comment() -> None:
    code = "from univg_fast.config import load_config; load_config(['--help'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    for section in dataclasses.fields(Config()):
        value = getattr(Config(), section.name)
        for item in dataclasses.fields(value) if dataclasses.is_dataclass(value) else ():
            assert f"--{section.name}.{item.name}" in done.stdout
    assert "responses of one prompt" in done.stdout  # a comment of schema.py


def test_images_are_decoded_by_a_rank_s_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stated in the resolved configuration; no number of a run hangs on it."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(12)))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    alone = load_config([])
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    shared, given = load_config([]), load_config(["--data.num_workers=0"])
    assert [config.data.num_workers for config in (alone, shared, given)] == [8, 3, 0]
    assert "num_workers: 3\n" in to_yaml(shared) and config_hash(alone) == config_hash(shared)


def test_dropout_must_not_be_in_the_ratios_of_later_optimizer_steps() -> None:
    wrong = ["--config=demo", "--model.lora.lora_dropout=0.1", "--model.freeze_vision_tower=true"]
    load_config(wrong)
    for key in ("steps_per_generation", "num_iterations"):
        load_config([wrong[0], wrong[2], "--model.lora.r=4", f"--grpo.{key}=2"])
        with pytest.raises(ValueError, match=rf"grpo.{key}: expected 1 beside model.lora.lora_dropout=0.1"):
            load_config([*wrong, f"--grpo.{key}=2"])
