"""Every kernel compiled ahead of time for sm_80, sm_90 and sm_100 as its launcher launches it; read from the binary."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("triton", reason="triton is published for Linux only")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter replaces the compiler", allow_module_level=True)

import torch  # noqa: E402
import univg_kernels as uk  # noqa: E402
from univg_kernels._rows import PolicyRows  # noqa: E402
from univg_kernels._triton.launch import row_launch  # noqa: E402
from univg_kernels._triton.scale import scale_on_device  # noqa: E402
from univg_kernels.box_iou import triton_impl as box_face  # noqa: E402
from univg_kernels.difficulty_weight import triton_impl as difficulty_face  # noqa: E402
from univg_kernels.group_advantage import triton_impl as group_face  # noqa: E402
from univg_kernels.grpo_loss import triton_impl as grpo_face  # noqa: E402
from univg_kernels.linear_ce import triton_impl as ce_face  # noqa: E402
from univg_kernels.policy_loss import triton_impl as policy_face  # noqa: E402
from univg_kernels.selective_logprob import triton_impl as logprob_face  # noqa: E402


@pytest.fixture(scope="module")
def aot() -> Any:
    """aot.py beside this file; tests are no package, so it is loaded by its path."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("_ops_aot", Path(__file__).with_name("aot.py"))
    assert spec and spec.loader
    module: ModuleType = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


QWEN = 152064
N = 3  # rows; no constant of a kernel depends on it


def policy_rows(*, given: bool = False) -> PolicyRows:
    ones, cu = torch.ones(2), torch.tensor([0, 1, N])
    groups = (None, None, None, ones, ones) if given else (ones, ones, torch.tensor([0, 2]), None, None)
    mask = None if given else torch.ones(N, dtype=torch.bool)
    logps = (None, None) if given else (torch.zeros(N), torch.zeros(N))
    return PolicyRows(cu, *groups, *logps, mask, 2.0)


def run_grpo(dtype: torch.dtype, vocab: int, given: bool = False) -> None:
    logits = (torch.empty(N, vocab, dtype=dtype).requires_grad_()) * 1
    grpo_face.grpo_loss(logits, torch.zeros(N, dtype=torch.int64), policy_rows(given=given), uk.GrpoConfig(), True)


def run_logprob(dtype: torch.dtype, vocab: int) -> None:
    z, ids, v = torch.empty(N, vocab, dtype=dtype), torch.zeros(N, dtype=torch.int64), torch.zeros(N)
    logprob_face.triton_logprob(z, ids, 0.9)
    logprob_face.triton_logprob_backward_(z, ids, v, v, v, v, 0.9)


def run_ce(dtype: torch.dtype, vocab: int) -> None:
    hidden, weight = torch.zeros(N, 2, dtype=dtype, requires_grad=True), torch.zeros(vocab, 2, dtype=dtype)
    ce_face.linear_ce(hidden, weight, None, torch.zeros(N, dtype=torch.int64), torch.ones(N))


def run_box(mode: str, kind: str, convention: str) -> None:
    box_face.box_iou(torch.zeros(5, 4), torch.zeros(5, 4), mode, kind, convention)


def run_group(scale: str) -> None:
    config = uk.GrpoConfig(scale_rewards=scale)
    group_face.group_advantage(torch.ones(2), torch.tensor([0, 2]), torch.ones(2), config)


SMALL = {
    "reduce_kernel": lambda: run_grpo(torch.float32, 64),
    "policy_rows_kernel": lambda: policy_face.policy_loss(
        torch.zeros(N), torch.zeros(N), policy_rows(), uk.GrpoConfig()
    ),
    "scale_kernel": lambda: scale_on_device(torch.zeros(N, 8, dtype=torch.bfloat16), torch.ones(())),
    "group_kernel": lambda: run_group("batch"),
    "difficulty_kernel": lambda: difficulty_face.difficulty_weight(torch.ones(3), "power", 2.0, False),
    "box_iou_kernel": lambda: run_box("pairwise", "giou", "continuous"),
}
HEADS = {
    "grpo_rows_kernel": run_grpo,
    "logprob_kernel": run_logprob,
    "logprob_backward_kernel": run_logprob,
    "ce_rows_kernel": run_ce,
}
# Where the loads of logits stand, as the design has it: forward one before the loop and one in it, backward the same.
TILE_LOADS = {"grpo_rows_kernel": 4, "logprob_kernel": 2, "logprob_backward_kernel": 2, "ce_rows_kernel": 4}
CAPABILITIES = [80, 90, 100]


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("name", SMALL)
def test_small_kernels_do_not_spill(aot, tmp_path: Path, name: str, capability: int) -> None:
    binary = aot.compile_for(aot.record_one(SMALL[name], name), capability, tmp_path)
    assert binary.stack == binary.local == 0, f"{name} spills on sm_{capability}"
    assert 0 < binary.registers <= 255


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("name", HEADS)
def test_heads_do_not_spill_and_read_a_row_once_a_sweep(aot, tmp_path: Path, name: str, capability: int) -> None:
    launch = aot.record_one(lambda: HEADS[name](torch.bfloat16, QWEN), name)
    binary = aot.compile_for(launch, capability, tmp_path)
    assert binary.stack == binary.local == 0, f"{name} spills on sm_{capability}"
    # 1024 threads share 65,536 registers; more than 32 each keep a multiprocessor to one row, which the L2 plan of the
    # kernels with two sweeps needs.
    assert launch.options["num_warps"] == 32 and binary.registers <= 64
    assert binary.registers > 32 or TILE_LOADS[name] == 2
    assert binary.loads_of("bf16") == ["2048x8"] * TILE_LOADS[name]
    wide = binary.ptx.count("ld.global.v4.b32")
    assert wide == 2 * TILE_LOADS[name], f"{wide} 16-byte loads, two for each tile expected"
    assert re.search(r"muli .* : i64", binary.ttgir), "rows are found by 64-bit offsets: N·V passes 2^31 at 14,000 rows"
    narrow = binary.ptx.count("ld.global.b16")  # the target's logit
    assert narrow == (0 if name == "logprob_backward_kernel" else 1)


@pytest.mark.parametrize(
    "dtype, vocab", [(torch.float32, 151936), (torch.bfloat16, 50257), (torch.float16, 700)], ids=str
)
@pytest.mark.parametrize("name", HEADS)
def test_heads_of_other_vocabularies(aot, tmp_path: Path, name: str, dtype: torch.dtype, vocab: int) -> None:
    """fp32; an odd vocabulary, whose rows allow no wide loads; a small one on few warps."""
    binary = aot.compile_for(aot.record_one(lambda: HEADS[name](dtype, vocab), name), 90, tmp_path)
    assert binary.stack == binary.local == 0


def test_rows_with_given_advantages(aot, tmp_path: Path) -> None:
    launch = aot.record_one(lambda: run_grpo(torch.bfloat16, QWEN, given=True), "grpo_rows_kernel")
    binary = aot.compile_for(launch, 90, tmp_path)
    assert binary.stack == binary.local == 0 and 32 < binary.registers <= 64


def test_one_launch_makes_loss_and_gradient(aot) -> None:
    """Group statistics, phi, loss, metrics and gradient: one launch over the rows and one that adds them up."""
    with aot.recorded() as launches:
        run_grpo(torch.bfloat16, 640)
    assert [(x.kernel.__name__, x.programs) for x in launches] == [
        ("grpo_rows_kernel", N),
        ("reduce_kernel", 1 + len(uk.METRICS)),
    ]


def test_no_batch_size_compiles_anything(aot) -> None:
    """Launches that differ in rows, responses, lengths and scalars share one binary."""

    def source(rows: int, temperature: float) -> str:
        bounds = torch.linspace(0, rows, rows // 2 + 1).long()
        b = bounds.numel() - 1
        group = torch.tensor([0, b])
        terms = PolicyRows(bounds, torch.ones(b), torch.ones(b), group, None, None, None, None, None, float(b))
        logits = torch.empty(rows, 640, dtype=torch.bfloat16).requires_grad_() * 1
        config = uk.GrpoConfig(temperature=temperature, epsilon_high=0.1 + temperature, beta=temperature / 10)
        ids = torch.zeros(rows, dtype=torch.int64)
        launch = aot.record_one(lambda: grpo_face.grpo_loss(logits, ids, terms, config, True), "grpo_rows_kernel")
        return launch.source().hash()

    assert len({source(rows, t) for rows, t in ((2, 1.0), (3, 0.7), (16, 1.0), (37, 0.9), (64, 1.3))}) == 1


@pytest.mark.parametrize("vocab", [1, 31, 700, 32768, 151936, 152064, 262144])
@pytest.mark.parametrize("itemsize", [2, 4])
def test_launch_table(vocab: int, itemsize: int) -> None:
    lanes, vec, warps = row_launch(vocab, itemsize)
    assert vec * itemsize == 16, "a lane is one 16-byte load"
    assert lanes & (lanes - 1) == 0 and lanes % (32 * warps) == 0, "each thread has whole lanes"
    assert lanes * vec < 2 * max(vocab, 32 * vec), "less than half a tile is beyond the vocabulary"
