"""The bench's own machinery: what is wrong is not timed, turns are taken, time is kept, ratios are what they say."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import univg_kernels as uk

from bench import targets
from bench.cases import all_cases
from bench.ceilings import Ceilings, measure_ceilings
from bench.device import Cpu, Cuda, Sample
from bench.harness import FEWEST, measure
from bench.run import Limits, run_case, run_cases
from bench.shapes import Shape
from bench.table import ratio
from bench.work import Case, Inputs, Outcome, Variant, Work
from univg_fast.config.reward_recipes import RECIPES
from univg_fast.rewards import TERMS

CEILINGS = Ceilings(1e10, {"fp32": 1e11, "bf16": 1e11})
COMPILED = frozenset({"torch.compile", "apple cce"})  # a compiler each: half a minute


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    """Every case at a size that takes a moment."""
    limits = Limits(rounds=2, seconds=6000, without=COMPILED)
    return [r for of_case in run_cases(all_cases("tiny"), Cpu(), CEILINGS, limits) for r in of_case]


def test_every_variant_that_is_here_is_right_and_timed(rows: list[dict[str, Any]]) -> None:
    assert [r for r in rows if not r["status"].startswith(("timed", "absent"))] == []
    timed = [r for r in rows if r["status"] == "timed"]
    assert all(0 < r["wall_p20_s"] <= r["wall_p50_s"] <= r["wall_p80_s"] for r in timed)
    assert all(r["error_of_allowed"] <= 1 for r in timed)


def test_completions_are_timed_with_every_recipe_and_term(rows: list[dict[str, Any]]) -> None:
    variants = {r["variant"] for r in rows if r["op"] == "completions" and r["status"] == "timed"}
    for name in (*RECIPES, *(f"term {term}" for term in TERMS), "univg_r1, Chinese", "univg_r1, boxes in pixels"):
        assert f"univg cpp, {name}" in variants
    (slowest,) = (t for t in targets.targets(rows) if t.what.startswith("the same with any recipe or term"))
    assert slowest.reached is not None


def test_every_case_has_the_compiled_face_and_the_specification(rows: list[dict[str, Any]]) -> None:
    assert uk.resolve("cpu") == "cpp"
    measured = {r["case"] for r in rows if r["label"] != "target" and hasattr(uk, r["op"])}
    for case in (c for c in measured if not c.startswith("shared_prefix_attention")):  # which is not compiled for CPUs
        assert {"univg cpp", "univg reference"} <= {r["variant"] for r in rows if r["case"] == case}


def test_every_op_and_loss_type_has_a_case() -> None:
    doors = {n for n in uk.__all__ if callable(getattr(uk, n)) and hasattr(getattr(uk, n), "__kwdefaults__")}
    doors -= {"resolve", "summarize", "combine_metrics", "pair_offsets", "shared_prefix"}  # which are no ops
    doors -= {"difficulty_weight", "scan_boxes", "distinct_runs"}  # inside group_advantage; text, in completions
    cases = all_cases("cpu")
    assert doors <= {c.op for c in cases}
    assert {c.label for c in cases if c.op == "policy_loss"} == set(uk.config.CHOICES["loss_type"])
    assert len({c.name for c in cases}) == len(cases)


def toy(function: Callable[[torch.Tensor], torch.Tensor], own: bool = True) -> Case:
    """A case of one variant, which ought to be the sum of squares."""

    def build(shape: Shape, dtype: torch.dtype, device: Cpu | Cuda) -> Work:
        inputs = Inputs({"x": torch.linspace(-1, 1, shape.rows, dtype=dtype)})

        def call(f: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], Outcome]:
            return lambda x: {"loss": f(x)}

        judge = inputs.judge(call(lambda x: x.square().sum()))
        return Work({"it": Variant(inputs.prepared(call(function)), judge, own)}, floor_bytes=8.0 * shape.rows)

    return Case("toy", "fp32", Shape(64), "", build)


def run_toy(function: Callable[[torch.Tensor], torch.Tensor], own: bool = True) -> dict[str, Any]:
    (row,) = run_case(toy(function, own), Cpu(), CEILINGS, Limits(2, 600.0))
    return row


def test_a_right_variant_is_timed_and_its_bytes_are_a_share_of_the_copy() -> None:
    row = run_toy(lambda x: (x * x).sum())
    assert row["status"] == "timed" and row["rounds"] == len(row["samples_s"]) == 2
    assert row["copy_share"] == pytest.approx(8 * 64 / row["wall_p50_s"] / 1e10)


class _HalfGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x.square().sum()

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> torch.Tensor:
        return ctx.saved_tensors[0] * upstream


@pytest.mark.parametrize("own", [True, False])
def test_a_wrong_gradient_is_named_and_not_timed(own: bool) -> None:
    row = run_toy(_HalfGradient.apply, own)
    assert row["status"].startswith("wrong: d_x") and "wall_p50_s" not in row


def test_a_variant_that_raises_has_no_time() -> None:
    row = run_toy(lambda x: x.view(3, 5).sum(), own=False)
    assert row["status"].startswith("failed: RuntimeError")


def test_nan_is_wrong() -> None:
    assert run_toy(lambda x: (x * float("nan")).sum())["status"].startswith("wrong")


def test_our_faces_are_held_to_more_than_those_of_others() -> None:
    """An error of five times what is allowed."""

    def off(x: torch.Tensor) -> torch.Tensor:
        return x.square().sum() * (1 + 5e-6)

    assert run_toy(off, own=True)["status"].startswith("wrong")
    assert run_toy(off, own=False)["status"] == "timed"


class Clock(Cpu):
    """What a call took is what it returns: no load of the machine changes it."""

    def sample(self, run: Callable[[], Any], mode: str) -> Sample:
        seconds = float(run())
        return Sample(seconds, seconds, 0.0)


def test_a_call_takes_what_it_takes() -> None:
    sample = Cpu().sample(lambda: time.sleep(0.3), "fresh")
    assert sample.seconds > 0.25 > sample.cpu_seconds


def test_variants_take_turns_and_a_slow_one_does_not_eat_the_time() -> None:
    order: list[str] = []

    def variant(name: str, seconds: float) -> Any:
        return lambda: lambda: order.append(name) or seconds

    variants = {"a": variant("a", 0.0), "b": variant("b", 0.0), "slow": variant("slow", 300.0)}
    samples, _ = measure(variants, Clock(), "fresh", rounds=4, seconds=1200.0)
    assert {k: len(v) for k, v in samples.items()} == {"a": 4, "b": 4, "slow": 1}
    assert order == ["a", "b", "slow", "slow", "a", "b", "b", "a", "a", "b", "b", "a"]
    assert samples["slow"][0].seconds == 300.0


def test_rounds_end_with_the_time_but_not_before_three() -> None:
    variants: dict[str, Any] = {"a": lambda: lambda: time.sleep(0.05) or 0.0}
    assert len(measure(variants, Clock(), "fresh", rounds=50, seconds=0.4)[0]["a"]) < 20
    assert len(measure(variants, Clock(), "fresh", rounds=50, seconds=0.0)[0]["a"]) == FEWEST


def test_one_slow_call_at_the_start_is_not_what_is_written_down() -> None:
    times = iter([200.0, 0.0, 0.0, 0.0])  # as with a compiler
    samples, _ = measure({"a": lambda: lambda: next(times)}, Clock(), "fresh", rounds=2, seconds=600.0)
    assert [s.seconds for s in samples["a"]] == [0.0] * 3


def test_what_fails_at_the_full_size_only_is_said() -> None:
    def build(shape: Shape, dtype: torch.dtype, device: Cpu | Cuda) -> Work:
        inputs = Inputs({"x": torch.ones(shape.rows, shape.vocab)})

        def call(x: torch.Tensor) -> Outcome:
            if len(x) > 200:
                raise MemoryError("no room")
            return {"loss": x.sum()}

        judge = inputs.judge(lambda x: {"loss": x.sum()})
        return Work({"it": Variant(inputs.prepared(call), judge, own=True)})

    case = Case("toy", "fp32", Shape(256, vocab=4), "", build)
    (row,) = run_case(case, Cpu(), CEILINGS, Limits(2, 600.0))
    assert row["status"] == "failed: MemoryError: no room" and row["own"]


def test_out_of_time_is_said() -> None:
    (rows,) = run_cases([toy(lambda x: x.sum())], Cpu(), CEILINGS, Limits(2, seconds=0.0))
    assert [r["status"] for r in rows] == ["not run: out of time"]


def test_memory_is_the_peak_above_what_was_there() -> None:
    held = torch.ones(2**22)
    sample = Cpu().sample(lambda: torch.ones(2**24), "cold")
    assert 0.9 * 2**26 < sample.peak_bytes < 2**26 + 2**24 and held.numel()


def test_ceilings_are_rates() -> None:
    ceilings = measure_ceilings(Cpu(), scale=1e-3)
    assert 1e6 < ceilings.copy < 1e13 and all(1e6 < g < 1e15 for g in ceilings.gemm.values())


def test_both_devices_have_the_same_methods() -> None:
    public = [{n for n in vars(d) if not n.startswith("_")} for d in (Cpu, Cuda)]
    assert public[0] == public[1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_every_case_on_the_gpu() -> None:
    limits = Limits(rounds=2, seconds=6000, without=COMPILED)
    rows = [r for of_case in run_cases(all_cases("tiny"), Cuda(), CEILINGS, limits) for r in of_case]
    assert [r for r in rows if r.get("own") and r["status"] != "timed"] == []
    assert {r["mode"] for r in rows if r["status"] == "timed"} == {"hot", "cold"}


def test_a_ratio_is_of_calls_that_were_neighbours() -> None:
    """The machine gets three times slower half-way: medians of each alone would say 0.67."""
    ours, theirs = ({"wall_p50_s": p, "samples_s": s} for p, s in ((2.0, [2.0, 6.0, 2.0]), (3.0, [1.0, 3.0, 3.0])))
    assert ratio(ours, theirs) == 2.0
    assert ratio(ours, theirs | {"samples_s": [3.0]}) == pytest.approx(2 / 3)


def target_rows(own: float, eager: float, extra: float) -> list[dict[str, Any]]:
    base: dict[str, Any] = dict(case="grpo_loss_fp32_4x8", op="grpo_loss", dtype="fp32", mode="fresh", status="timed")
    return [
        base | dict(variant="eager log_softmax", wall_p50_s=eager + 1, own=False),
        base | dict(variant="eager logsumexp", wall_p50_s=eager, own=False),
        base | dict(variant="univg cpp", wall_p50_s=own, own=True, extra_bytes=extra, avoided_bytes=100.0),
    ]


@pytest.mark.parametrize(("own", "extra", "met"), [(1.0, 2.0, [True, True]), (1.01, 2.5, [False, False])])
def test_targets_of_grpo_loss(own: float, extra: float, met: list[bool]) -> None:
    found = targets.targets(target_rows(own, 4.0, extra))
    assert [t.met for t in found] == met
    assert found[0].reached == pytest.approx(4.0 / own)


def test_targets_of_the_linear_head() -> None:
    base: dict[str, Any] = dict(
        case="linear_grpo_loss_fp32_1x2x3_target", op="linear_grpo_loss", dtype="fp32", mode="fresh"
    )
    base |= dict(status="timed", extra_bytes=9.0, avoided_bytes=100.0)
    times = {"three products": 10.0, "two products": 6.0, "univg cpp": 10.4, "univg cpp, half active": 7.5}
    rows = [base | dict(variant=n, wall_p50_s=t, own=n.startswith("univg")) for n, t in times.items()]
    found = {t.what.split(": ")[1]: (t.reached, t.met) for t in targets.targets(rows)}
    assert found["time over three bare products"] == (pytest.approx(1.04), True)
    assert found["half of the rows inactive, over dense"] == (pytest.approx(0.721, abs=1e-3), False)
    assert found["extra memory over the logits it avoids"] == (pytest.approx(0.09), True)
