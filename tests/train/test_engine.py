"""The engine against plain torch: same losses, norms and parameters at every ZeRO stage and world size."""

from __future__ import annotations

import gc
import json
import math
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from univg_fast import distributed
from univg_fast.config import Config, DeepSpeedConfig
from univg_fast.config.schema import FaultConfig
from univg_fast.data.samples import make_processor
from univg_fast.data.tokenizer import build_tokenizer
from univg_fast.leaving import is_own_check
from univg_fast.train import engine
from univg_fast.train.faults import Faults
from univg_fast.train.phases import Phases
from univg_fast.train.setup import load_policy

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(Path(__file__).parent))  # the worker imports the same problem
from engine_problem import OPTIM, STEPS, TinyLM, batch  # noqa: E402

# warm-up over 2 of 5 steps, then a cosine to 0 over 3
RATES = [1e-2 * x for x in (0.5, 1.0, 1.0, (1 + math.cos(math.pi / 3)) / 2, (1 + math.cos(2 * math.pi / 3)) / 2)]


@pytest.fixture(scope="module", params=[1, 2], ids=["world1", "world2"])
def report(request: pytest.FixtureRequest, launch: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("engine") / "report.json"
    done = launch("engine_worker.py", path, world=request.param)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(path.read_text())


def plain_torch(module: TinyLM, steps: int = STEPS, skip: int | None = None) -> dict[str, list[float]]:
    """The same training written with torch alone. A skipped step does not move the schedule."""
    matrices = [p for p in module.parameters() if p.requires_grad and p.ndim >= 2]
    others = [p for p in module.parameters() if p.requires_grad and p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, foreach=False)
    log: dict[str, list[float]] = {"loss": [], "grad_norm": [], "learning_rate": []}
    applied = 0
    for step in range(steps):
        optimizer.zero_grad()
        total = sum(module(*row) for row in batch(step))
        total.backward()
        norm = torch.nn.utils.clip_grad_norm_(matrices + others, 2.0)
        log["loss"].append(float(total.detach()))
        log["grad_norm"].append(float(norm))
        log["learning_rate"].append(RATES[applied])
        for group in optimizer.param_groups:
            group["lr"] = RATES[applied]
        if step != skip:
            optimizer.step()
            applied += 1
    log["parameters"] = torch.cat([p.detach().flatten() for p in module.parameters()]).tolist()
    return log


@pytest.mark.parametrize("stage", range(4))
def test_five_steps_equal_plain_torch(report: Any, stage: int) -> None:
    got, want = report["plain"][str(stage)], plain_torch(TinyLM())
    assert got["applied"] == [True] * STEPS
    for key in ("loss", "grad_norm", "learning_rate", "parameters"):
        assert got[key] == pytest.approx(want[key], rel=1e-5, abs=1e-6), key
    assert max(want["grad_norm"]) > 2.0, "the problem must exercise clipping"


@pytest.mark.parametrize("stage", range(4))
def test_second_engine_starts_from_the_first_ones_weights(report: Any, stage: int) -> None:
    module = TinyLM()
    plain_torch(module)
    want = plain_torch(module, steps=2)
    got = report["second_engine"][str(stage)]
    assert got["loss"] == pytest.approx(want["loss"], rel=1e-5)
    assert got["parameters"] == pytest.approx(want["parameters"], rel=1e-5, abs=1e-6)


# no bfloat16 and no offload at stage 0
HOW = ["float32", "bfloat16", "float32-offload", "bfloat16-offload"]
SKIPS = [(stage, how) for stage in range(4) for how in (HOW if stage else HOW[:1])]


@pytest.mark.parametrize("poison", ["loss", "gradient"])
@pytest.mark.parametrize(("stage", "how"), SKIPS)
def test_what_is_not_a_number_on_one_rank_skips_the_step_on_all(report: Any, stage: int, how: str, poison: str) -> None:
    got = report["poisoned"][f"{stage}-{poison}-{how}"]
    assert got["applied"] == [True, True, False, True, True]
    assert got["stood_still"] == [False, False, True, False, False], "bit for bit"
    assert math.isnan(got["loss"][2]) == (poison == "loss") and not math.isfinite(got["grad_norm"][2])
    want = plain_torch(TinyLM(), skip=2)
    assert got["learning_rate"] == pytest.approx(want["learning_rate"])
    if how.startswith("float32"):
        assert got["parameters"] == pytest.approx(want["parameters"], rel=1e-5, abs=1e-6)
    elif how == "bfloat16-offload":
        assert got["parameters"] == report["poisoned"][f"{stage}-{poison}-bfloat16"]["parameters"], "bit for bit"


def test_rows_do_not_wait_for_the_device(report: Any) -> None:
    """Not for a loss that may be NaN, either. DeepSpeed's step reads the norm, and what it makes of it."""
    assert len(report["reads"]) == 7
    for case, (rows, whole) in report["reads"].items():
        assert rows == 0 and 1 <= whole <= 4, case


@pytest.mark.parametrize("stage", (1, 2, 3))
def test_an_offloaded_optimizer_makes_the_same_steps(report: Any, stage: int) -> None:
    got, want = report["offload"][str(stage)], plain_torch(TinyLM())
    for key in ("loss", "grad_norm", "parameters"):
        assert got[key] == pytest.approx(want[key], rel=1e-5, abs=1e-6), key
    assert "AdamW on cpu" in got["line"], "and it is offloaded"


def test_the_wrapper_is_told(report: Any) -> None:
    lines = {stage: report["plain"][str(stage)]["line"] for stage in range(4)}
    assert "ZeRO 0, AdamW; weights float32, gradients summed in float32" in lines[0]
    assert "DeepSpeedZeroOptimizer of AdamW;" in lines[1] and "Stage3 of AdamW;" in lines[3]
    half = report["bfloat16"]["1"]["line"]
    assert "BF16_Optimizer of AdamW; weights bfloat16, gradients summed in float32; 2 groups of at most" in half
    # 32 x 16, 16 x 16 | 16, 16, 16: also where ZeRO 3 has taken the parameters to pieces
    assert all(line.endswith("2 groups of at most 0.000768 M parameters") for line in lines.values())


@pytest.mark.parametrize("stage", (1, 2, 3))
def test_bfloat16_follows_float32(report: Any, stage: int) -> None:
    got, want = report["bfloat16"][str(stage)], plain_torch(TinyLM())
    assert got["loss"] == pytest.approx(want["loss"], rel=0.02)
    assert got["grad_norm"] == pytest.approx(want["grad_norm"], rel=0.05)
    weights = torch.tensor(got["parameters"])
    assert torch.equal(weights, weights.bfloat16().float()), "the module's own weights stay bfloat16"
    assert got["loss"] != pytest.approx(want["loss"], rel=1e-7), "and that must show"


def test_float32_sums_of_bfloat16_gradients_are_not_rounded_between_ranks(report: Any) -> None:
    module = TinyLM().to(torch.bfloat16)
    trained = [p for p in module.parameters() if p.requires_grad]
    sums = [torch.zeros(p.shape) for p in trained]
    for row in batch(0):
        for total, gradient in zip(sums, torch.autograd.grad(module(*row), trained), strict=True):
            total += gradient.float()
    norm, rounded = (float(torch.nn.utils.get_total_norm(x)) for x in (sums, [s.bfloat16().float() for s in sums]))
    close = 8 * torch.finfo(torch.float32).eps
    assert report["bfloat16"]["1"]["grad_norm"][0] == pytest.approx(norm, rel=close)
    assert rounded != pytest.approx(norm, rel=4 * close), "and that would show"
    for stage, sent in (("1", "float32; "), ("2", "float32 and sent in bfloat16; "), ("3", "float32 and sent in bf")):
        assert f"gradients summed in {sent}" in report["bfloat16"][stage]["line"]


def test_config_is_laid_over_not_replaced() -> None:
    top = DeepSpeedConfig(
        zero_stage=2, config={"zero_optimization": {"reduce_bucket_size": 7}, "wall_clock_breakdown": True}
    )
    config = engine.engine_config(OPTIM, top, torch.bfloat16, "cuda")
    assert config["zero_optimization"]["reduce_bucket_size"] == 7
    assert config["zero_optimization"]["stage"] == 2 and config["zero_optimization"]["overlap_comm"]
    assert config["wall_clock_breakdown"] and config["data_types"] == {"grad_accum_dtype": "fp32"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.requires_grad_(False), "nothing to train"),
        (lambda m: m.body.norm.to(torch.bfloat16), "torch.bfloat16, torch.float32"),
        (lambda m: m.to(torch.float16), "torch.float16"),
        (lambda m: m.to(torch.bfloat16), "expected 1, 2 or 3 with bfloat16"),
    ],
)
def test_modules_that_cannot_be_trained_are_refused(change: Any, message: str) -> None:
    module = TinyLM()
    change(module)
    with pytest.raises(ValueError, match=message):
        engine.make_engine(module, OPTIM, DeepSpeedConfig(zero_stage=0), STEPS)


def test_what_deepspeed_refuses_is_one_line_that_names_the_section() -> None:
    """Of several lines of pydantic's, out of a library."""
    distributed.init()
    given = DeepSpeedConfig(zero_stage=1, config={"zero_optimization": {"reduce_bucket_size": "much"}})
    with pytest.raises(
        ValueError, match=r"^deepspeed\.config: .* reduce_bucket_size Input should be a valid"
    ) as caught:
        engine.make_engine(TinyLM(), OPTIM, given, STEPS)
    assert "\n" not in str(caught.value) and is_own_check(caught.value)


def tensors() -> dict[int, torch.Tensor]:
    return {id(x): x for x in gc.get_objects() if isinstance(x, torch.Tensor)}


def size(found: list[torch.Tensor]) -> int:
    return sum({s.data_ptr(): s.nbytes() for s in (x.untyped_storage() for x in found)}.values())


def after_a_step(stage: int, dtype: torch.dtype, faults: Faults) -> Any:
    """An engine of the small problem as a stage leaves it."""
    ds = engine.make_engine(TinyLM().to(dtype), OPTIM, DeepSpeedConfig(zero_stage=stage), STEPS)
    faults.into_model(ds.module)
    engine.train_step(ds, (ds(*row) for row in batch(0)))
    return ds


KINDS = [*((stage, torch.float32) for stage in range(4)), *((stage, torch.bfloat16) for stage in (1, 2, 3))]


@pytest.mark.parametrize(("stage", "dtype"), KINDS)
def test_what_a_released_engine_held_is_free_when_the_next_model_is_loaded(
    stage: int, dtype: torch.dtype, tmp_path: Path
) -> None:
    """DeepSpeed's buffers first, then the model; not whenever Python's own collector comes by.

    Pieces of weights, which ZeRO 3 has of the model, stay in a cache of DeepSpeed's.
    """
    distributed.init()
    gc.collect()
    gc.disable()
    try:
        others = set(tensors())
        ds = after_a_step(stage, dtype, Faults(FaultConfig(), Phases(), tmp_path))
        held = [weakref.ref(x) for i, x in tensors().items() if i not in others]
        module = engine.release(ds)
        del ds
        engine.free_memory(torch.device("cpu"))
        left = [x for x in (ref() for ref in held) if x is not None]
        own = [getattr(p, "ds_tensor", p) for p in module.parameters()]
        assert size(left) == size(own) and len(left) < len(held)
        most = size(own) if stage == 3 else 0
        if not most:  # a graph in a circle, as a run leaves some
            circle: list[Any] = []
            circle += [circle, module(*batch(1)[0])]
            del circle
        del left, own, module
        model = load_policy(Config(), make_processor(build_tokenizer(["x"])), "qwen2_vl_tiny", torch.device("cpu"))
        assert size([x for x in (ref() for ref in held) if x is not None]) <= most and next(model.parameters()).numel()
    finally:
        gc.enable()


def test_deepspeeds_own_groups_have_the_time_limit_of_the_run() -> None:
    """It makes them with the backend's: half an hour with gloo, and ten minutes with NCCL, before a watchdog speaks."""
    distributed.init()
    ds = engine.make_engine(TinyLM(), OPTIM, DeepSpeedConfig(zero_stage=2), STEPS)
    groups = [ds.data_parallel_group, *torch.distributed.distributed_c10d._world.pg_map]
    limits = {group._get_backend(torch.device("cpu")).options._timeout for group in groups}
    engine.release(ds)
    assert len(groups) > 2 and limits == {distributed._timeout}
