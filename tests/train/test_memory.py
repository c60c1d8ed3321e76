"""The memory estimate: bytes of weights, gradients and optimizer as measured, the other lines by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import VOCAB, tiny_model

from univg_fast.config import Config, DataConfig, DeepSpeedConfig, GrpoStageConfig, ModelConfig
from univg_fast.config.schema import LoraConfig
from univg_fast.train.crash import out_of_memory
from univg_fast.train.memory import GIB, RESERVE, Load, memory, told
from univg_fast.train.phases import Phases
from univg_fast.train.shapes import Shape, shape_of

CASES = [f"float32-{stage}" for stage in range(4)] + [f"bfloat16-{stage}" for stage in (1, 2, 3)]
CASES += ["adapters", "rounded", "offloaded"]
SHAPE = Shape(
    language=7_000_000_000,
    vision=600_000_000,
    hidden=3584,
    intermediate=18944,
    layers=28,
    kv=512,
    vision_depth=32,
    vision_width=1280,
    vision_intermediate=5120,
    patch_values=1176,
    merge=2,
    vocab=152064,
    trained=7_000_000_000,
    largest_group=1_000_000_000,
)
LOAD = Load(row_tokens=16384, image_tokens=6000, prompt_tokens=2000.0)
CONFIG = Config(
    stages=("grpo",),
    model=ModelConfig(torch_dtype="bfloat16", gradient_checkpointing=True),
    data=DataConfig(grpo=("x.json",)),
    grpo=GrpoStageConfig(prompts_per_step=16, num_generations=8, max_completion_length=256, beta=0.04),
    deepspeed=DeepSpeedConfig(zero_stage=2),
)


@pytest.fixture(scope="module")
def report(launch: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("memory") / "report.json"
    done = launch("memory_worker.py", path, world=2)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(path.read_text())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("line", ["weights", "gradients", "optimizer"])
def test_bytes_are_those_that_a_rank_holds(report: Any, case: str, line: str) -> None:
    held, estimate = report[case]["held"][line], report[case]["estimate"][line]
    if case == "offloaded" and line != "weights":
        assert estimate == 0 or line == "gradients"
        assert line == "gradients" or f"on cpu: {held / GIB:.3g} GiB" in report[case]["formulas"][line]
        return
    # ZeRO 2 in one dtype keeps a matrix whole that its partitions' border cuts
    assert held > 0 and estimate == pytest.approx(held, rel=1e-2 if case == "float32-2" else 1e-12)


def table(config: Config, stage: str = "grpo", gpus: int = 8, load: Load = LOAD) -> dict[str, float]:
    return {line.name: line.value for line in memory(stage, config, SHAPE, load, gpus)}


def test_memory_by_hand() -> None:
    found = table(CONFIG)
    assert found["weights"] == pytest.approx(7.6e9 * 2 / GIB)
    assert found["reference model"] == pytest.approx(7e9 * 2 / GIB)  # it shares the frozen tower
    assert found["gradients"] == pytest.approx(7e9 * 4 / 8 / GIB)  # ZeRO 2 splits them, and the vision tower is frozen
    assert found["optimizer"] == pytest.approx(7e9 * 12 / 8 / GIB)
    assert found["gradients of one group"] == pytest.approx(1e9 * 4 / 8 / GIB)
    each = 6 * 3584 + 2 * 512 + 4 * 18944
    assert found["activations of the longest row"] == pytest.approx(16384 * (28 * 3584 + each) * 2 / GIB)
    head = 2 * 16384 * 3584 * 2 + 4096 * 152064 * 2 + 152064 * 3584 * 4
    assert found["loss of the longest row"] == pytest.approx(head / GIB)
    # two prompts of a rank: of the draw, and in the rows
    assert found["images of the step's prompts"] == pytest.approx(2 * 2 * 2000 * 3584 * 2 / GIB)
    seen = found.pop("images of a pass before the rollout")  # nor is this: both prompts' images, less than a full row
    assert seen == pytest.approx(2 * 2000 * 4 * (1176 * 4 + (8 * 1280 + 2 * 5120) * 2) / GIB)
    tokens = 2 * (2000 + 8 * 256)
    cache = found.pop("rollout's keys and values")  # not there during the update, which takes more
    assert cache == pytest.approx(2 * 28 * 512 * 2 * tokens / GIB)
    parts = sum(value for name, value in found.items() if name not in ("sum", "reserve"))
    assert found["sum"] == pytest.approx(parts * (1 + RESERVE))


@pytest.mark.parametrize(("stage", "copies"), [("sft", 1), ("grpo", 2)])
def test_more_gpus_do_not_help_where_a_model_is_loaded(stage: str, copies: int) -> None:
    """ZeRO 3 divides what lies on each GPU whole; with enough GPUs that moment is the fullest."""
    sharded = replace(CONFIG, deepspeed=DeepSpeedConfig(zero_stage=3), grpo=replace(CONFIG.grpo, beta=0.0))
    large = replace(SHAPE, language=72_000_000_000, trained=72_000_000_000)
    lines = memory(stage, sharded, large, LOAD, 64)
    (loading,) = (line.value for line in lines if line.name == "weights while loading")
    assert loading == pytest.approx(copies * 72.6e9 * 2 / GIB)
    assert lines[-1].value == pytest.approx(loading * (1 + RESERVE)) and lines[-1].formula == "what the loading takes"
    few = {line.name: line for line in memory(stage, sharded, SHAPE, LOAD, 8)}
    assert few["sum"].value > few["weights while loading"].value * (1 + RESERVE) and "always" in few["sum"].formula
    assert "weights while loading" not in table(CONFIG, stage)
    warned = told(stage, lines, 80.0, LOAD)
    assert any("weights while loading = " in line and "more GPUs do not make it less" in line for line in warned)


def test_memory_follows_the_configuration() -> None:
    assert (
        table(replace(CONFIG, deepspeed=DeepSpeedConfig(zero_stage=1)))["gradients"] == 8 * table(CONFIG)["gradients"]
    )
    sharded = table(replace(CONFIG, deepspeed=DeepSpeedConfig(zero_stage=3)))
    assert sharded["weights"] == table(CONFIG)["weights"] / 8 and "rollout copy" in sharded
    assert "reference model" not in table(replace(CONFIG, grpo=replace(CONFIG.grpo, beta=0.0)))
    draws = replace(CONFIG, grpo=replace(CONFIG.grpo, dynamic_sampling_max_draws=5))
    images = "images of the step's prompts"
    assert table(draws)[images] == 3 * table(CONFIG)[images] and images not in table(CONFIG, "sft")
    adapters = replace(CONFIG, model=replace(CONFIG.model, lora=LoraConfig()))
    assert table(adapters)["reference model"] == 0
    kept = replace(CONFIG, model=replace(CONFIG.model, gradient_checkpointing=False))
    assert table(kept)["activations of the longest row"] > 5 * table(CONFIG)["activations of the longest row"]
    assert "rollout's keys and values" not in table(CONFIG, "sft")


def test_a_frozen_tower_sees_no_more_at_once_than_a_row_holds() -> None:
    """However many prompts a rank has; one that trains sees a row's images in its update."""
    seen, full = "images of a pass before the rollout", Load.full(CONFIG)
    many = replace(CONFIG, grpo=replace(CONFIG.grpo, prompts_per_step=64))
    assert table(many, gpus=1, load=full)[seen] == table(CONFIG, gpus=1, load=full)[seen] > 0
    half = replace(many, pack=replace(many.pack, budget_tokens=many.pack.budget_tokens // 2))
    assert table(half, gpus=1, load=full)[seen] == table(many, gpus=1, load=full)[seen] / 2
    assert "images of the fullest row" not in table(many) and "images of the fullest row" in table(CONFIG, "sft")
    shape = replace(SHAPE, vision_trained=SHAPE.vision)
    assert "images of the fullest row" in {line.name for line in memory("grpo", CONFIG, shape, LOAD, 8)}


def test_out_of_memory_before_or_in_the_rollout_says_what_bounds_either() -> None:
    phases = Phases()
    phases.stage, phases.step, phases.name = "grpo", 1, "gen"
    trains = replace(CONFIG, model=replace(CONFIG.model, freeze_vision_tower=False))
    frozen, training = (str(out_of_memory(torch.OutOfMemoryError("full"), phases, c)) for c in (CONFIG, trains))
    assert "rollout.cache_gib=8 bounds" in frozen and "rollout.cache_gib=8 bounds" in training
    assert "pack.budget_tokens=16384 what the vision tower sees" in frozen and "budget_tokens" not in training


def test_a_reference_in_host_memory() -> None:
    """On the device two buffers of the largest module; on the host what torch locks for them: powers of two."""
    config = replace(CONFIG, grpo=replace(CONFIG.grpo, reference="host"))
    (line,) = (x for x in memory("grpo", config, SHAPE, LOAD, 8) if x.name == "reference model")
    assert line.value == pytest.approx(2 * 152064 * 3584 * 2 / GIB)
    # a vocabulary is 1.02 GiB and takes 2; a layer is 0.39 and takes 0.5
    assert f"{2 * 2 + 28 * 0.5:.3g} GiB of host memory for each rank" in line.formula


def test_what_does_not_fit_is_told_with_what_to_set() -> None:
    lines = memory("grpo", CONFIG, SHAPE, Load.full(CONFIG), 1)
    (fits,) = told("grpo", lines, 1000.0, Load.full(CONFIG))
    assert "GiB a rank by formula, where rows are full (weights 14.2, gradients 26.1" in fits
    warning, *helps = told("grpo", lines, 80.0, LOAD)
    assert warning.startswith("warning: memory of grpo:") and "more than the 80 GiB of the device" in warning
    assert len(helps) == 3 and "optimizer = 7 G trained x 12 bytes" in helps[0] and "offload_optimizer" in helps[0]


@pytest.mark.parametrize(
    ("freeze", "lora"),
    [(True, None), (False, None), (True, LoraConfig(r=4, modules_to_save=("lm_head",)))],
    ids=["frozen", "trained", "adapters"],
)
def test_parameters_are_those_of_the_model(freeze: bool, lora: LoraConfig | None) -> None:
    model = tiny_model().model
    shape = shape_of(ModelConfig(freeze_vision_tower=freeze, lora=lora), VOCAB)
    vision, everything = (sum(p.numel() for p in x.parameters()) for x in (model.model.visual, model))
    assert shape.vision == vision and shape.language == everything - vision
    assert (shape.hidden, shape.layers, shape.kv) == (192, 3, 64)
    if lora is None:
        assert shape.trained == everything - freeze * vision and shape.adapters == 0 and shape.head_trains
    else:
        ends = [(192, 192), (192, 64), (192, 64), (192, 192), (192, 576), (192, 576), (576, 192)]
        assert shape.trained == shape.adapters == 4 * 3 * sum(map(sum, ends)) + len(VOCAB) * 192
