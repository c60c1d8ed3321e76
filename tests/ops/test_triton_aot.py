"""Every kernel compiled ahead of time for sm_80, sm_90 and sm_100 as its launcher launches it; read from the binary."""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="triton is published for Linux only")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter replaces the compiler", allow_module_level=True)

import torch  # noqa: E402
import univg_kernels as uk  # noqa: E402
from ops import aot  # noqa: E402
from ops.aot_calls import (  # noqa: E402
    QWEN,
    N,
    policy_rows,
    run_attention,
    run_box,
    run_box_gradient,
    run_ce,
    run_compact,
    run_group,
    run_grpo,
    run_logprob,
    run_policy,
)
from ops.draws import PAIRS  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402
from univg_kernels._rows import PolicyRows  # noqa: E402
from univg_kernels._triton.launch import row_launch  # noqa: E402
from univg_kernels._triton.scale import scale_on_device  # noqa: E402
from univg_kernels.difficulty_weight import triton_impl as difficulty_face  # noqa: E402
from univg_kernels.grpo_loss import triton_impl as grpo_face  # noqa: E402

SMALL = {
    "reduce_kernel": lambda: run_grpo(torch.float32, 64),
    "policy_rows_kernel": lambda: run_policy(policy_rows()),
    "scale_kernel": lambda: scale_on_device(torch.zeros(N, 8, dtype=torch.bfloat16), torch.ones(())),
    "compact_kernel": run_compact,
    "group_kernel": lambda: run_group("batch"),
    "difficulty_kernel": lambda: difficulty_face.difficulty_weight(torch.ones(3), "power", 2.0, False),
    "box_iou_kernel": lambda: run_box("pairwise", "giou", "continuous"),
    "box_iou_backward_kernel": lambda: run_box_gradient(True),
}
ATTENTION = ("forward_kernel", "query_gradient_kernel", "key_gradient_kernel")
HEADS: dict[str, Any] = {
    "grpo_rows_kernel": run_grpo,
    "logprob_kernel": run_logprob,
    "logprob_backward_kernel": run_logprob,
    "ce_rows_kernel": run_ce,
}
# Where the loads of logits stand, as the design has it: forward one before the loop and one in it, backward the same.
TILE_LOADS = {"grpo_rows_kernel": 4, "logprob_kernel": 2, "logprob_backward_kernel": 2, "ce_rows_kernel": 4}
CAPABILITIES = [80, 90, 100]


def test_no_kernel_is_left_out() -> None:
    for module in pkgutil.walk_packages(uk.__path__, "univg_kernels."):
        if module.name.endswith(".triton_impl") or "._triton." in module.name:
            found = vars(importlib.import_module(module.name))
            kernels = {k for k, v in found.items() if isinstance(v, JITFunction) and k.endswith("_kernel")}
            assert kernels <= {*SMALL, *HEADS, *ATTENTION}, module.name


def check_head(launch: aot.Launch, capability: int, folder: Path) -> aot.Binary:
    """A head at the vocabulary of Qwen, in bf16: nothing spilled, rows read once a sweep, in 16-byte loads."""
    name = launch.kernel.__name__
    binary = aot.compile_for(launch, capability, folder)
    assert binary.stack == binary.local == 0, f"{name} spills on sm_{capability}"
    # 1024 threads share 65,536 registers; more than 32 each keep a multiprocessor to one row, which the L2 plan of the
    # kernels with two sweeps needs.
    assert launch.options["num_warps"] == 32 and binary.registers <= 64
    assert binary.registers > 32 or TILE_LOADS[name] == 2
    assert binary.loads_of("bf16") == ["2048x8"] * TILE_LOADS[name]
    wide = binary.ptx.count("ld.global.v4.b32")
    assert wide == 2 * TILE_LOADS[name], f"{wide} 16-byte loads, two for each tile expected"
    return binary


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("name", SMALL)
def test_small_kernels_do_not_spill(tmp_path: Path, name: str, capability: int) -> None:
    binary = aot.compile_for(aot.record_one(SMALL[name], name), capability, tmp_path)
    assert binary.stack == binary.local == 0, f"{name} spills on sm_{capability}"
    assert 0 < binary.registers <= 255


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("dtype, dim", [(torch.bfloat16, 64), (torch.bfloat16, 128), (torch.float32, 64)], ids=str)
@pytest.mark.parametrize("name", ATTENTION)
def test_attention_does_not_spill(tmp_path: Path, name: str, dtype: torch.dtype, dim: int, capability: int) -> None:
    binary = aot.compile_for(aot.record_one(lambda: run_attention(dtype, dim), name), capability, tmp_path)
    assert binary.stack == binary.local == 0, f"{name} spills on sm_{capability}"
    tensor_cores = re.search(r"\b(wgmma|mma\.sync|tcgen05\.mma)\S*", binary.ptx)
    assert bool(tensor_cores) == (dtype == torch.bfloat16)
    assert re.search(r"muli .* : tensor<.*i64", binary.ttgir), "tokens are found by 64-bit offsets"


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("name", HEADS)
def test_heads_do_not_spill_and_read_a_row_once_a_sweep(tmp_path: Path, name: str, capability: int) -> None:
    binary = check_head(aot.record_one(lambda: HEADS[name](torch.bfloat16, QWEN), name), capability, tmp_path)
    assert re.search(r"muli .* : i64", binary.ttgir), "rows are found by 64-bit offsets: N·V passes 2^31 at 14,000 rows"
    narrow = binary.ptx.count("ld.global.b16")  # the target's logit
    assert narrow == (0 if name == "logprob_backward_kernel" else 1)


# An odd vocabulary_size in padded rows keeps the wide loads.
SOFTMAX: dict[str, dict[str, Any]] = {
    "soft cap": dict(softcap=30.0),
    "padding": dict(vocab_size=151665),
    "both": dict(softcap=30.0, vocab_size=151665),
}


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("softmax", SOFTMAX)
def test_soft_cap_and_padding_cost_no_spills(tmp_path: Path, softmax: str, capability: int) -> None:
    for name in ("grpo_rows_kernel", "logprob_kernel", "logprob_backward_kernel"):
        more = dict(entropy_coef=0.1) if name == "grpo_rows_kernel" else {}
        launch = aot.record_one(lambda: HEADS[name](torch.bfloat16, QWEN, **SOFTMAX[softmax], **more), name)  # noqa: B023
        check_head(launch, capability, tmp_path)


KLS: list[dict[str, Any]] = [
    dict(kl_estimator="k1"), dict(kl_estimator="k2"), dict(kl_estimator="k3", k3_clamp=True),
    dict(kl_estimator="k1+", importance_sampling_on_kl=True), dict(kl_estimator="k3+", use_bias_correction_kl=True),
]  # fmt: skip
ALL: dict[str, Any] = dict(entropy_coef=0.1, delta=2.0, max_completion_length=5)  # settings that add most to a program
COUPLING = dict(off_policy_mask_threshold=0.1, importance_sampling_mode="sequence_mask")


@pytest.mark.parametrize(("loss", "level"), PAIRS)
def test_every_loss_in_the_kernel_of_the_responses(tmp_path: Path, loss: str, level: str) -> None:
    """On sm_90 and, in turn, another one; each KL estimator several times."""
    i = PAIRS.index((loss, level))
    rows = policy_rows(sampling_logp=torch.zeros(N), entropy_threshold=0.5)
    by_row = dict(importance_sampling_mode="token_truncate") if i % 2 else {}  # gmpo and vespo take other sums for it
    settings = ALL | COUPLING | by_row | KLS[i % len(KLS)]
    settings |= dict(loss_type=loss, importance_sampling_level=level)
    launch = aot.record_one(lambda: run_policy(rows, **settings), "policy_rows_kernel")
    for capability in (90, CAPABILITIES[0 if i % 2 else 2]):
        binary = aot.compile_for(launch, capability, tmp_path)
        assert binary.stack == binary.local == 0, f"spills on sm_{capability}"


@pytest.mark.parametrize("loss", [loss for loss, level in PAIRS if level == "token" and loss not in ("gmpo", "vespo")])
def test_every_loss_in_the_kernel_of_the_rows(tmp_path: Path, loss: str) -> None:
    losses = [loss for loss, level in PAIRS if level == "token"]
    rows = policy_rows(sampling_logp=torch.zeros(N), entropy_threshold=0.5)
    settings = ALL | KLS[losses.index(loss) % len(KLS)]
    settings |= dict(loss_type=loss, importance_sampling_mode="token_mask", entropy_aggregation="loss")
    launch = aot.record_one(lambda: run_grpo(torch.bfloat16, QWEN, rows=rows, **settings), "grpo_rows_kernel")
    for capability in (90, CAPABILITIES[losses.index(loss) % 3]):
        check_head(launch, capability, tmp_path)


OTHERS = [(torch.float32, 151936), (torch.bfloat16, 50257), (torch.float16, 700)]


@pytest.mark.parametrize("dtype, vocab", OTHERS, ids=str)
@pytest.mark.parametrize("name", HEADS)
def test_heads_of_other_vocabularies(tmp_path: Path, name: str, dtype: torch.dtype, vocab: int) -> None:
    """fp32; an odd vocabulary, whose rows allow no wide loads; a small one on few warps. With all that costs most."""
    most: dict[str, Any] = dict(softcap=30.0) | (dict(entropy_coef=0.1) if name == "grpo_rows_kernel" else {})
    for options in ({}, most):
        launch = aot.record_one(lambda: HEADS[name](dtype, vocab, **options), name)  # noqa: B023
        binary = aot.compile_for(launch, 90, tmp_path)
        assert binary.stack == binary.local == 0


def test_rows_with_given_advantages(tmp_path: Path) -> None:
    launch = aot.record_one(lambda: run_grpo(torch.bfloat16, QWEN, given=True), "grpo_rows_kernel")
    check_head(launch, 90, tmp_path)


ROW = [{}, dict(loss_type="cispo", entropy_coef=0.1, softcap=30.0), dict(loss_type="reinforce", vocab_size=600)]


@pytest.mark.parametrize("settings", ROW, ids=str)
def test_one_launch_makes_loss_and_gradient(settings: dict[str, Any]) -> None:
    """Group statistics, phi, loss, metrics and gradient: one launch over the rows and one that adds them up."""
    with aot.recorded() as launches:
        run_grpo(torch.bfloat16, 640, **settings)
    assert [(x.kernel.__name__, x.programs) for x in launches] == [
        ("grpo_rows_kernel", N),
        ("reduce_kernel", 1 + len(uk.METRICS)),
    ]


def test_rows_that_depend_on_each_other_are_read_twice() -> None:
    with aot.recorded() as launches:
        run_grpo(torch.bfloat16, 640, importance_sampling_level="sequence")
    assert [(x.kernel.__name__, x.programs) for x in launches] == [
        ("logprob_kernel", N),
        ("policy_rows_kernel", 2),
        ("logprob_backward_kernel", N),
        ("reduce_kernel", 1 + len(uk.METRICS)),
    ]


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_no_batch_size_and_no_number_compiles_anything(level: str) -> None:
    """Launches that differ in rows, responses, lengths and scalars share their binaries."""

    def sources(rows: int, x: float) -> list[str]:
        bounds = torch.linspace(0, rows, rows // 2 + 1).long()
        b = bounds.numel() - 1
        terms = PolicyRows(
            bounds, rewards=torch.ones(b), accuracy=torch.ones(b), cu_groups=torch.tensor([0, b]), denominator=float(b)
        )
        logits = torch.empty(rows, 640, dtype=torch.bfloat16).requires_grad_() * 1
        config = uk.GrpoConfig(
            importance_sampling_level=level, temperature=x, epsilon_high=0.1 + x, beta=x / 10, softcap=x,
            entropy_coef=x, delta=1 + x, advantage_eps=x - 0.7,
        )  # fmt: skip
        ids = torch.zeros(rows, dtype=torch.int64)
        with aot.recorded() as launches:
            grpo_face.grpo_loss(logits, ids, terms, config, True)
        return [x.source.hash() for x in launches]

    first, *others = [sources(rows, x) for rows, x in ((2, 1.0), (3, 0.7), (16, 1.0), (37, 0.9), (64, 1.3))]
    assert len(first) == (2 if level == "token" else 4) and all(x == first for x in others)


@pytest.mark.parametrize("vocab", [1, 31, 700, 32768, 151936, 152064, 262144])
@pytest.mark.parametrize("itemsize", [2, 4])
def test_launch_table(vocab: int, itemsize: int) -> None:
    lanes, vec, warps = row_launch(vocab, itemsize)
    assert vec * itemsize == 16, "a lane is one 16-byte load"
    assert lanes & (lanes - 1) == 0 and lanes % (32 * warps) == 0, "each thread has whole lanes"
    assert lanes * vec < 2 * max(vocab, 32 * vec), "less than half a tile is beyond the vocabulary"
