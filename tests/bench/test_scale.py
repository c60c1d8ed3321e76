"""The model of cost: its FLOPs are the trainer's, its traffic is by hand, and on this CPU it comes near the truth."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bench.overhead_work import config_of
from bench.scale import estimate, model_of
from bench.scale_model import Links, Load, Rates, communication, predict
from univg_fast.packing.report import tally

ROOT = Path(__file__).resolve().parents[2]
FREE = 1e300  # a rate at which nothing takes time
RATES = Rates(
    matmul=5e14, few=5e14, attention=2e14, head=5e14, elementwise=3e12, memory=3e12, optimizer=3e12, call=3e-6
)
LINKS = Links(node=4e11, network=4e10)
LOAD = Load(prompts=2, images=4, image_tokens=512, text=120, generations=8, response=256)


def test_the_products_are_those_of_the_trainers_mfu() -> None:
    """At one FLOP a second, and all else for nothing, seconds are the FLOPs of `StepFlops`, and a half of a forward
    pass's attention, which flash attention does again backward."""
    shape, flops = model_of("2b")
    config = config_of("grpo")
    config = replace(config, model=replace(config.model, gradient_checkpointing=False))
    groups = LOAD.groups()
    seconds = predict(flops, shape, config, groups, Rates(1.0, 1.0, 1.0, 1.0, FREE, FREE, FREE, 0.0), LINKS)
    sums = tally(groups, [groups], config.pack.budget_tokens)
    counts = {"attention_pairs": sums["pairs"], "scored_tokens": 2 * 8 * 256.0} | sums
    again = flops.pair / 5 / 2 * sums["pairs"]  # of sampling, reference, and three of the update
    whole = seconds["gen"] + seconds["ref"] + seconds["update"]
    assert whole == pytest.approx(flops.step(counts) + again, rel=1e-9)
    recomputed = replace(config, model=replace(config.model, gradient_checkpointing=True))
    more = predict(flops, shape, recomputed, groups, Rates(1.0, 1.0, 1.0, 1.0, FREE, FREE, FREE, 0.0), LINKS)
    assert 1.2 < more["update"] / seconds["update"] < 4 / 3


@pytest.mark.parametrize(
    ("zero", "sent"), [(0, 2 * 4), (1, 2 * 4 + 2), (2, 3 * 4 + 2), (3, None)], ids=["zero0", "zero1", "zero2", "zero3"]
)
def test_the_bytes_of_a_step(zero: int, sent: int | None) -> None:
    """Of 3 rows, bf16: bytes a trained parameter, sums over ranks count twice; ZeRO 3 also gathers everything twice a
    row and once more."""
    shape, _ = model_of("2b")
    config = config_of("grpo")
    config = replace(config, deepspeed=replace(config.deepspeed, zero_stage=zero))
    links = Links(node=1.0, network=1.0, latency=0.0)
    bytes_sent = shape.trained * (sent or 3 * 2) + (0 if sent else (shape.language + shape.vision) * 2 * 7)
    assert communication(shape, config, 3, 2, links, 8) == pytest.approx(bytes_sent * 7 / 8)
    assert communication(shape, config, 3, 2, links, 1) == 0
    slow = replace(links, network=0.1)
    assert communication(shape, config, 3, 2, slow, 16) == pytest.approx(bytes_sent * 15 / 16 * 10)
    assert communication(shape, config, 3, 2, slow, 8) == pytest.approx(bytes_sent * 7 / 8)


@pytest.mark.parametrize(("zero", "step", "rows"), [(1, 28 + 34 / 8 + 8, 18), (2, 70 / 8, 12 + 22 / 8)])
def test_the_optimizer_s_traffic_on_eight_gpus(zero: int, step: float, rows: float) -> None:
    """Sums of gradients and norm stay whole at ZeRO 1 on every rank; a row's gradients are a part of the update."""
    shape, flops = model_of("2b")
    config = replace(config_of("grpo"), deepspeed=replace(config_of("grpo").deepspeed, zero_stage=zero))
    slow = replace(RATES, memory=FREE, optimizer=1.0)
    seconds = predict(flops, shape, config, LOAD.groups(), slow, LINKS, gpus=8)
    assert seconds["optim"] == pytest.approx(shape.trained * step)
    slow = Rates(FREE, FREE, FREE, FREE, FREE, 1.0, FREE, 0.0)
    update = predict(flops, shape, config, LOAD.groups(), slow, LINKS, gpus=8)["update"]
    assert update == pytest.approx(shape.trained * rows)


def test_published_models_and_what_more_gpus_do() -> None:
    sizes = {name: model_of(name)[0] for name in ("2b", "7b", "72b")}
    billions = {name: (shape.language + shape.vision) / 1e9 for name, shape in sizes.items()}
    assert billions == pytest.approx({"2b": 2.21, "7b": 8.29, "72b": 73.4}, rel=5e-3)  # as their model cards say
    one, eight, many = (estimate("7b", gpus, 3, LOAD, RATES, LINKS) for gpus in (1, 8, 1024))
    assert one.seconds["comm"] == 0 < eight.seconds["comm"] < many.seconds["comm"]
    assert one.gib > eight.gib > many.gib
    assert (
        8 < many.prompts_per_second / eight.prompts_per_second < 128
    )  # the network is slower than the machine's links
    more = estimate("7b", 8, 3, replace(LOAD, images=8), RATES, LINKS)
    assert more.step > eight.step and more.gib > eight.gib


def test_the_command_says_what_it_assumes() -> None:
    words = ["bench.scale", "--models", "2b", "--gpus", "8", "--zero", "1", "--matmul-tflops", "400"]
    done = subprocess.run([sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "a prediction from rates: parameters; nothing of it is measured" in done.stdout
    assert "TFLOP/s: matmul 400" in done.stdout and done.stdout.count("assumed: ") > 5 and "GiB a GPU" in done.stdout


def test_predicted_against_measured_here(tmp_path: Path) -> None:
    """A small step of the trainer on one thread, in CPU seconds. How near it comes at full size is in the results."""
    words = ["bench.scale", "--check", "--size", "tiny", "--rounds", "1", "--out", str(tmp_path / "row.jsonl")]
    done = subprocess.run([sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = map(json.loads, (tmp_path / "row.jsonl").read_text().splitlines())
    assert row["commit"] and row["predicted"].keys() == {"gen", "ref", "update", "optim"}
    assert f"{row['times']:.2f}" in done.stdout
    assert 1 / 4 < row["times"] < 4, done.stdout
