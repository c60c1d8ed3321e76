"""The CUDA C++ kernel of `grpo_loss` without a GPU: its own source in an emulated cluster (cuda/emulated_device.h)."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Iterator
from ctypes import POINTER, Structure, c_float, c_int32, c_int64, c_uint32, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import univg_kernels as uk
from torch import Tensor
from univg_kernels._program import SCALARS, row_program
from univg_kernels._row_checks import check_rows
from univg_kernels._softmax import softmax_spec

HERE = Path(__file__).parent / "cuda"
COMPILER = shutil.which("g++")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no g++")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ENUMS = {  # of csrc/row_program.h
    "loss_type": ("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo", "gmpo", "reinforce"),
    "kl": ("none", "k1", "k2", "k3", "k1+", "k3+"),
    "importance": ("none", "token_given", "sequence_given", "token_truncate", "token_mask"),
}


class Call(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("rows", "stride", "gradient_stride", "logits_items")),
        *((name, c_int32) for name in ("columns", "ranks", "threads", "dtype", "loss", "level", "kl", "importance")),
        ("flags", c_int32 * 5),
        ("seed", c_uint32),
        *((name, c_float) for name in ("scale", "knee")),
        ("scalars", c_float * len(SCALARS)),
        *((name, c_void_p) for name in ("logits", "gradient", "buffer", "ids")),
        ("inputs", c_void_p * 9),
        *((name, c_void_p) for name in ("logp", "records", "active", "reads")),
    ]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    path = tmp_path_factory.mktemp("emulated") / "grpo.so"
    flags = ("-std=c++20", "-O2", "-fPIC", "-shared", '-DUNIVG_DEVICE_HEADER="emulated_device.h"', f"-I{HERE}")
    subprocess.run([str(COMPILER), *flags, str(HERE / "emulated_grpo.cpp"), "-o", str(path)], check=True)
    loaded = ctypes.CDLL(str(path))
    loaded.emulate_grpo.argtypes = [POINTER(Call)]
    loaded.emulate_reduction.argtypes = [c_void_p, c_int64, c_void_p, c_void_p]
    loaded.walk_row.argtypes = [c_int32, ctypes.c_uint64, c_int32, c_int32, c_int32]
    return loaded


@dataclass
class Outcome:
    loss: Tensor
    metrics: Tensor
    logp: Tensor
    active: Tensor
    gradient: Tensor | None
    reads: Tensor  # of each logit


@dataclass(frozen=True)
class Layout:
    """Where rows lie and who works on them. offset, gap: columns before the first row and between rows."""

    ranks: int = 2
    threads: int = 64
    offset: int = 0
    gap: int = 0
    inplace: bool = True
    gradient_offset: int = 0
    with_grad: bool = True


def place(values: Tensor, offset: int, gap: int) -> tuple[Tensor, Tensor]:
    """(buffer, view of it that holds `values`); the buffer begins at a 16-byte boundary and is a little longer."""
    n, v = values.shape
    buffer = torch.full((offset + n * (v + gap) + 64,), torch.nan, dtype=values.dtype)
    assert buffer.data_ptr() % 16 == 0
    view = buffer.as_strided((n, v), (v + gap, 1), offset)
    view.copy_(values)
    return buffer, view


def run(library: ctypes.CDLL, case: Any, config: uk.GrpoConfig, layout: Layout, seed: int = 1) -> Outcome:
    from univg_kernels.policy_loss.cpp_impl import row_inputs

    n, v = case.logits.shape
    checked = check_rows("test", n, case.logits.device, config, case.cu_seqlens, dict(case.rows))
    inputs = row_inputs(checked, config, n, torch.float32)
    program, softmax = row_program(checked, config), softmax_spec(config)
    buffer, z = place(case.logits, layout.offset, layout.gap)
    before, out = buffer.clone(), None
    if layout.with_grad:
        out = z if layout.inplace else place(torch.full_like(case.logits, torch.nan), layout.gradient_offset, 0)[1]
    logp, active = torch.full((n,), torch.nan), torch.ones(n, dtype=torch.bool)
    records, reads = torch.full((11, n), torch.nan), torch.zeros(len(buffer), dtype=torch.uint8)
    ids = case.token_ids.long()
    call = Call(
        **dict(rows=n, stride=z.stride(0), gradient_stride=0 if out is None else out.stride(0)),
        **dict(logits_items=len(buffer), columns=v, ranks=layout.ranks, threads=layout.threads, seed=seed),
        **dict(dtype=DTYPES.index(case.logits.dtype), loss=ENUMS["loss_type"].index(program.loss_type), level=0),
        **dict(kl=ENUMS["kl"].index(program.kl), importance=ENUMS["importance"].index(program.importance)),
        flags=(c_int32 * 5)(*program[4:9]),
        **dict(scale=softmax.scale, knee=softmax.cap / softmax.scale),
        scalars=(c_float * len(SCALARS))(*program.scalars),
        **dict(logits=z.data_ptr(), gradient=0 if out is None else out.data_ptr(), buffer=buffer.data_ptr()),
        inputs=(c_void_p * 9)(*(None if t is None else t.data_ptr() for t in inputs)),
        **dict(ids=ids.data_ptr(), logp=logp.data_ptr(), records=records.data_ptr(), active=active.data_ptr()),
        reads=reads.data_ptr(),
    )
    library.emulate_grpo(call)
    if layout.inplace and layout.with_grad:  # nothing was written beside the rows
        before.as_strided(z.shape, z.stride(), layout.offset).copy_(z)
    assert torch.equal(buffer.view(torch.uint8), before.view(torch.uint8))
    counted = reads.as_strided(z.shape, z.stride(), layout.offset).clone()
    assert int(reads.sum()) == int(counted.sum()), "read beside the rows"
    loss, metrics = torch.tensor(torch.nan), torch.full((len(uk.METRICS),), torch.nan)
    library.emulate_reduction(records.data_ptr(), n, loss.data_ptr(), metrics.data_ptr())
    return Outcome(loss, metrics, logp, active, out, counted)


def reference(case: Any, config: uk.GrpoConfig) -> tuple[uk.GrpoOutput, Tensor]:
    z = case.logits.detach().clone().requires_grad_()
    arguments = dict(token_ids=case.token_ids, cu_seqlens=case.cu_seqlens, config=config, inplace=False)
    out = uk.grpo_loss(z, **arguments, backend="reference", **case.rows)
    return out, torch.autograd.grad(out.loss, z)[0]


def layouts() -> Iterator[Any]:
    yield "one CTA", Layout(ranks=1, threads=128)
    yield "cluster of eight", Layout(ranks=8, threads=32)
    yield "rows begin anywhere", Layout(ranks=4, threads=32, offset=3, gap=5)
    yield "out of place", Layout(inplace=False)
    yield "out of place, aligned otherwise", Layout(offset=1, gap=2, inplace=False, gradient_offset=2)
    yield "no gradient", Layout(with_grad=False)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", [pytest.param(x, id=name) for name, x in layouts()])
@pytest.mark.parametrize("vocab", [1, 13, 1000, 6007])
def test_kernel(library, make_case, assert_no_worse, vocab: int, layout: Layout, dtype: torch.dtype) -> None:
    config = uk.GrpoConfig(temperature=0.9, epsilon_low=0.2, delta=1.5)
    case = make_case(seed=3, lengths=(2, 0, 3), groups=(2, 1), vocab=vocab, given=True, temperature=0.9)
    mask = torch.tensor([True, False, True, True, True])
    case.rows.update(denominator=3.5, mask=mask)
    truth, true_grad = reference(case, config)
    case = case.to(dtype)
    eager, eager_grad = reference(case, config)
    got = run(library, case, config, layout)
    for name in ("loss", "logp"):
        assert_no_worse(name, getattr(got, name), getattr(eager, name), getattr(truth, name), dtype)
    for i, name in enumerate(uk.METRICS):
        assert_no_worse(name, got.metrics[i], eager.metrics[i], truth.metrics[i], dtype)
    assert (got.reads == mask[:, None]).all(), "a logit that counts is read once, another never"
    if got.gradient is not None:
        assert_no_worse("gradient", got.gradient, eager_grad, true_grad, dtype)
        assert (got.gradient[~mask] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_vocabulary_of_today(library, make_case, assert_no_worse, dtype: torch.dtype) -> None:
    """152064 columns, as many CTAs and threads as on a GPU with 200 KB of shared memory."""
    case = make_case(lengths=(2,), groups=(1,), vocab=152064, given=True, masked=False)
    truth, true_grad = reference(case, uk.GrpoConfig())
    case = case.to(dtype)
    eager, eager_grad = reference(case, uk.GrpoConfig())
    planned = (c_int32 * 3)()
    library.plan(152064 * dtype.itemsize // 16, 200 << 10, planned)
    ranks, slice_bytes, threads = planned
    assert (ranks, slice_bytes) == (8, 152064 * dtype.itemsize // 8)
    got = run(library, case, uk.GrpoConfig(), Layout(ranks=ranks, threads=threads))
    assert_no_worse("loss", got.loss, eager.loss, truth.loss, dtype)
    assert_no_worse("gradient", got.gradient, eager_grad, true_grad, dtype)
    assert (got.reads == 1).all()


CONFIGS = {
    "entropy bonus": dict(entropy_coef=0.3, entropy_aggregation="loss"),
    "softcap": dict(softcap=2.0, temperature=0.7, logit_scale=1.3),
    "softcap and entropy bonus": dict(softcap=2.0, entropy_coef=0.3),
    "cispo, straight-through KL": dict(loss_type="cispo", epsilon_high=1.2, kl_estimator="k3+"),
    "sapo, KL times ratio": dict(loss_type="sapo", use_bias_correction_kl=True, kl_estimator="k2"),
    "reinforce, token mask": dict(
        loss_type="reinforce", importance_sampling_mode="token_mask", importance_sampling_clip_max=1.3
    ),
    "no KL": dict(loss_type="dapo", beta=0.0),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_programs(library, make_case, assert_no_worse, name: str) -> None:
    config = uk.GrpoConfig(**CONFIGS[name])
    case = make_case(seed=5, lengths=(4, 3), groups=(2,), vocab=203, given=True)
    if config.importance_sampling_mode == "token_mask":
        case.rows["sampling_logp"] = case.rows["old_logp"] + torch.linspace(-0.6, 0.6, 7).double()
        case.rows["sampling_logp"][2] = torch.nan
    case.logits[:, 7] = -torch.inf  # a column that cannot be
    if config.softcap is not None:
        case.logits[:, 7] = -30.0
    case.token_ids[case.token_ids == 7] = 8
    truth, true_grad = reference(case, config)
    case = case.to(torch.float32)
    eager, eager_grad = reference(case, config)
    for seed in range(3):  # of the order in which threads take turns
        got = run(library, case, config, Layout(ranks=2, threads=32, offset=1), seed)
        assert_no_worse("loss", got.loss, eager.loss, truth.loss, torch.float32)
        assert_no_worse("gradient", got.gradient, eager_grad, true_grad, torch.float32)
        for i, metric in enumerate(uk.METRICS):
            assert_no_worse(metric, got.metrics[i], eager.metrics[i], truth.metrics[i], torch.float32)


def test_inactive_rows_are_filled_with_zeros(library, make_case) -> None:
    case = make_case(lengths=(3, 2), groups=(2,), vocab=70, given=True, ref=False, masked=False).to(torch.float32)
    case.rows["advantages"][1] = 0
    got = run(library, case, uk.GrpoConfig(), Layout(ranks=2, threads=32))
    assert got.active.tolist() == [True] * 3 + [False] * 2
    assert (got.gradient[:3] != 0).any(1).all() and (got.gradient[3:] == 0).all()


def test_reduction(library) -> None:
    """Sums and maxima over more rows than threads; a NaN stays; no row gives zeros."""
    records = torch.rand(11, 1000, generator=torch.Generator().manual_seed(1))
    records[10, 300] = torch.nan
    results = torch.empty(1 + len(uk.METRICS))
    for rows in (records, records[:, :0].contiguous()):
        library.emulate_reduction(rows.data_ptr(), rows.shape[1], results.data_ptr(), results[1:].data_ptr())
        maxima = rows[[6, 9, 7, 10]].amax(1) if rows.numel() else torch.zeros(4)
        want = torch.cat([rows[:9].double().sum(1).float(), maxima])
        torch.testing.assert_close(results, want, equal_nan=True, rtol=1e-6, atol=0)


@pytest.mark.parametrize("fault", ["nan", "inf", "id"])
def test_what_cannot_be_right_is_not_silent(library, make_case, fault: str) -> None:
    case = make_case(lengths=(2, 1), groups=(2,), vocab=70, given=True, masked=False).to(torch.float32)
    if fault == "id":
        case.token_ids[1] = 70
    else:
        case.logits[1, 3] = float(fault)
    got = run(library, case, uk.GrpoConfig(), Layout(ranks=2, threads=32))
    assert got.loss.isnan() and got.logp.isnan().tolist() == [False, True, False]
    assert got.gradient[1].isnan().all() and got.gradient[[0, 2]].isfinite().all()


def test_every_column_has_one_place(library) -> None:
    """Over addresses, row lengths, clusters and CTAs: as the loops go, and as `Place` finds the target."""
    for size in (2, 4):
        for columns in (*range(1, 70), 127, 128, 129, 1000, 4099, 151936, 152064):
            for address in range(0, 16, size) if columns < 5000 else (0, 2 * size, 16 - size):
                for ranks, threads in ((1, 128), (2, 32), (4, 64), (8, 256)):
                    at = library.walk_row(size, 4096 + address, columns, ranks, threads)
                    assert at == 0, (size, columns, address, ranks, threads, at)


def test_plan(library) -> None:
    """Every row of up to 8 times the shared memory of a CTA gets a cluster whose slices fit; longer rows get none."""
    most = 200 << 10
    for vectors in [0, 1, 100, 2560, 2561, 19008, 38016, 8 * (most // 16), 8 * (most // 16) + 1]:
        out = (c_int32 * 3)()
        library.plan(vectors, most, out)
        ranks, slice_bytes, threads = out
        if vectors > 8 * (most // 16):
            assert ranks == 0
            continue
        assert ranks in (1, 2, 4, 8) and threads % 32 == 0 and 14 <= threads <= 512
        assert ranks * slice_bytes >= 16 * vectors and slice_bytes <= most
        assert ranks == 8 or slice_bytes <= 40 << 10
