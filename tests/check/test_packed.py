"""The packing plan of an epoch, against sums made by hand; histograms; formulas of the hours."""

from __future__ import annotations

from array import array
from dataclasses import replace

import pytest

from univg_fast.check import histogram
from univg_fast.check.estimate import Machine, hours
from univg_fast.check.look import Counts
from univg_fast.check.packed import NAMED, Packing, pack_epoch
from univg_fast.config import Config, DataConfig, DeepSpeedConfig, GrpoStageConfig, ModelConfig, SftConfig
from univg_fast.data.mix import Mix
from univg_fast.train.shapes import Shape


def counted(prompts: list[int], responses: list[int]) -> Counts:
    return Counts(array("I", prompts), array("I", responses), array("I", [p // 2 for p in prompts]))


def test_stage_1_by_hand() -> None:
    counts = counted([100, 200, 300, 0], [10, 20, 30, 0])  # the last one is bad
    packing = pack_epoch(counts, Mix((4,), (1.0,)), batch=4, seed=0, ranks=1, budget=400)
    assert (packing.steps, packing.groups, packing.rows) == (1, 3, 2)  # 330 | 220 + 110
    assert packing.tokens == packing.separate == 660 and packing.padded == 3 * 330
    assert packing.room == 800 and packing.fill == pytest.approx(660 / 800) and packing.shared == 0
    assert packing.saved == pytest.approx(1 - 660 / 990) and packing.response_tokens == 20
    assert (packing.longest_row, packing.image_tokens, packing.largest_images, packing.over_budget) == (
        330,
        300,
        150,
        0,
    )


def test_rows_over_the_budget_are_told_by_record() -> None:
    """The first ones, each once, by its number in the data: record 0 is bad."""
    counts = counted([0, 900, 100, 1900], [0, 10, 20, 30])
    packing = pack_epoch(counts, Mix((4,), (2.0,)), batch=4, seed=0, ranks=1, budget=800)
    assert sorted(packing.over) == [(1, 910), (3, 1930)] and packing.over_budget == 4
    many = pack_epoch(counted([900] * 50, [10] * 50), Mix((50,), (1.0,)), batch=4, seed=0, ranks=2, budget=800)
    assert len(many.over) == NAMED and many.over_budget == 50


def test_stage_2_shares_the_prompt() -> None:
    counts = counted([1000, 500], [0, 0])
    packing = pack_epoch(counts, Mix((2,), (1.0,)), batch=2, seed=0, ranks=1, budget=2000, generations=8,
                         response_tokens=100)  # fmt: skip
    assert packing.tokens == 1000 + 800 + 500 + 800
    assert packing.separate == 8 * (1100 + 600) and packing.padded == 8 * 2 * 1100
    assert (packing.over_budget, packing.rows, packing.room, packing.groups) == (0, 2, 4000, 2)
    split = pack_epoch(counts, Mix((2,), (1.0,)), batch=2, seed=0, ranks=1, budget=1500, generations=8,
                       response_tokens=100)  # fmt: skip
    assert split.tokens == 2 * 1000 + 800 + 500 + 800  # the larger group in two parts, of 5 and 3 responses
    assert (split.over_budget, split.rows, split.longest_row, split.groups) == (0, 3, 1500, 2)
    assert split.separate == packing.separate and split.image_tokens == 2 * 500 + 250
    long = pack_epoch(counts, Mix((2,), (1.0,)), batch=2, seed=0, ranks=1, budget=1050, generations=8,
                      response_tokens=100)  # fmt: skip
    assert long.over_budget == 4 and long.longest_row == 1200 and long.room == 4 * 1200 + 2 * 1050
    assert long.over == ((0, 1200),) and not split.over


def test_ranks_and_steps_share_the_records() -> None:
    counts = counted([100 + i for i in range(50)], [7] * 50)
    packing = pack_epoch(counts, Mix((50,), (1.0,)), batch=8, seed=3, ranks=4, budget=10_000)
    assert packing.steps == 7 and packing.groups == 50
    assert packing.tokens == sum(counts.prompt) + 50 * 7
    assert packing.rows == 6 * 4 + 2  # the last step has records for two ranks
    twice = pack_epoch(counts, Mix((50,), (2.0,)), batch=8, seed=3, ranks=1, budget=10_000)
    assert twice.tokens == 2 * packing.tokens  # a weight of 2: each record twice in an epoch
    assert 1 / 7 < packing.imbalance < 0.2  # two ranks of four wait in the last of 7 steps


def test_a_window_fills_rows() -> None:
    counts = counted([300 + 37 * (i % 29) for i in range(300)], [50] * 300)
    off, on = (
        pack_epoch(counts, Mix((300,), (1.0,)), batch=8, seed=0, ranks=1, budget=3000, window=window)
        for window in (0, 128)
    )
    assert (
        (on.steps, on.groups, on.tokens) == (off.steps, off.groups, off.tokens) == (38, 300, sum(counts.prompt) + 15000)
    )
    assert off.fill < 0.9 < 0.95 < on.fill


def test_histograms_hold_every_record() -> None:
    lengths = array("I", [0, 1, 5, 5, 480, 999])
    made = histogram.tokens("t", lengths)
    assert sum(made.counts) == 5 and made.edges[0] == 0 and made.edges[-1] > 999  # the 0 was left out
    assert made.figures["largest"] == 999 and made.figures["median"] == 5
    shown = histogram.images(array("I", [1, 2, 2, 40]))
    assert sum(shown.counts) == 4 and shown.counts[:2] == (1, 2) and shown.counts[-1] == 1 and len(shown.counts) == 12
    assert sum(histogram.sides(array("f", [0.0, 0.049, 0.051, 1.0])).counts) == 4
    empty = histogram.tokens("t", array("I"))
    assert sum(empty.counts) == 0 and empty.figures == {} and empty.bars


SHAPE = Shape(7_000_000_000, 600_000_000, 3584, 18944, 28, 512, 32, 1280, 5120, 1176, 2)
PACKING = Packing(steps=10, groups=160, generations=8, response_tokens=200.0, tokens=160 * (2000 + 1600), separate=0,
                  padded=0, room=0, rows=20, over_budget=0, image_tokens=160 * 1500, longest_row=16384,
                  largest_images=6000)  # fmt: skip
CONFIG = Config(
    stages=("grpo",),
    model=ModelConfig(torch_dtype="bfloat16", gradient_checkpointing=True),
    data=DataConfig(grpo=("x.json",)),
    grpo=GrpoStageConfig(prompts_per_step=16, num_generations=8, max_completion_length=256, beta=0.04),
    deepspeed=DeepSpeedConfig(zero_stage=2),
)


def test_hours_by_hand_and_by_a_measured_rate() -> None:
    config = replace(CONFIG, grpo=replace(CONFIG.grpo, max_steps=20))  # two epochs of 160 records
    found = {line.name: line.value for line in hours("grpo", config, SHAPE, PACKING, 160, Machine(gpus=8, tflops=100))}
    per_hour = 100e12 * 8 * 3600
    assert found["training"] == pytest.approx(2 * PACKING.tokens * 8 * 7e9 / per_hour)
    assert found["reference pass"] == pytest.approx(2 * PACKING.tokens * 2 * 7e9 / per_hour)
    assert found["sampling"] == pytest.approx(2 * 160 * 8 * 200 / (1000 * 8 * 3600))
    assert found["sum"] == pytest.approx(sum(v for k, v in found.items() if k != "sum"))
    rate = Machine(gpus=4, tokens_per_second=5000, tflops=1)
    sft = replace(
        config, stages=("sft",), data=DataConfig(sft=("x",)), sft=SftConfig(max_steps=10, per_step_samples=16)
    )
    trained = next(line for line in hours("sft", sft, SHAPE, PACKING, 160, rate) if line.name == "training")
    assert trained.value == pytest.approx(PACKING.tokens / (5000 * 4 * 3600)) and "576,000 tokens" in trained.formula
