"""The CUDA C++ face of `grpo_loss`: its kernels as nvcc compiles them, its Python, and on a GPU the whole of it."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import univg_kernels as uk
from torch import Tensor
from univg_kernels import _dispatch

CSRC = Path(__file__).parents[2] / "csrc"
NVCC = shutil.which("nvcc")
KERNELS = 6  # of rows: three dtypes, with softcap and without


@dataclass(frozen=True)
class Binary:
    usage: str  # what ptxas says
    cubin: Path

    def figures(self, pattern: str) -> list[int]:
        """One for each kernel that works on rows."""
        entries = re.split(r"Compiling entry function ", self.usage)[1:]
        found = [re.search(pattern, e) for e in entries if "grpo_rows_kernel" in e.splitlines()[0]]
        assert len(found) == KERNELS and all(found), self.usage
        return [int(f.group(1)) for f in found if f]


@pytest.fixture(scope="module", params=["sm_90", "sm_100"])
def binary(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Binary:
    if NVCC is None:
        pytest.skip("no nvcc")
    listed = subprocess.run([NVCC, "--list-gpu-code"], capture_output=True, text=True).stdout
    if request.param not in listed.split():
        pytest.skip(f"this nvcc does not know {request.param}")
    path = tmp_path_factory.mktemp("cuda") / "grpo_head.cubin"
    include = Path(torch.__file__).parent / "include"
    command = [
        *(NVCC, "-std=c++20", f"-arch={request.param}", "-O3", "--expt-relaxed-constexpr", "-DUSE_CUDA", "-cubin"),
        *("-DTORCH_TARGET_VERSION=0x020a000000000000", "-isystem", str(include), "-Xptxas", "-v"),
        *("-o", str(path), str(CSRC / "cuda" / "grpo_head.cu")),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "warning" not in done.stderr, done.stderr
    return Binary(done.stderr, path)


@pytest.mark.slow
def test_nothing_is_spilled(binary: Binary) -> None:
    for what in ("bytes stack frame", "bytes spill stores", "bytes spill loads"):
        assert binary.figures(rf"(\d+) {what}") == [0] * KERNELS
    assert max(binary.figures(r"Used (\d+) registers")) <= 65536 // (5 * 256), "five CTAs of 256 threads must fit"


@pytest.mark.slow
def test_a_row_is_read_from_global_memory_once(binary: Binary) -> None:
    """It is fetched by 16-byte copies to shared memory, in two places of the code (before the loop, and in it), and
    no global memory is read after the barrier of the cluster: the gradient is made of what is on chip."""
    triton = pytest.importorskip("triton", reason="its cuobjdump reads the binary")
    cuobjdump = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    sass = subprocess.run([str(cuobjdump), "-sass", str(binary.cubin)], capture_output=True, text=True, check=True)
    functions = [f for f in re.split(r"Function : ", sass.stdout)[1:] if "grpo_rows_kernel" in f.splitlines()[0]]
    assert len(functions) == KERNELS
    for code in functions:
        operations = re.findall(r"^\s+/\*[0-9a-f]{4,5}\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]*)", code, re.M)
        copies = [op for op in operations if op.startswith("LDGSTS")]
        assert len(copies) == 2 and all(op.endswith(".128") for op in copies), copies
        barrier = operations.index("UCGABAR_WAIT")
        after = [op for op in operations[barrier:] if op.startswith(("LDG", "LD.", "UBLKCP", "LDL", "STL"))]
        assert not after, after
        singles = [op for op in operations[:barrier] if op.startswith("LDG.")]
        # weight, id, the other row factors and threshold, one column at the edge of the row
        assert len(singles) == 2 + 9 + 1, singles
        assert any(op.startswith("STG") and op.endswith(".128") for op in operations[barrier:])


def test_which_calls_have_it(make_case) -> None:
    with pytest.raises(ValueError, match="backend 'cuda' needs CUDA tensors, got cpu; use backend='cpp'"):
        uk.resolve("cpu", "cuda")
    if _dispatch._has_cuda_ops():
        assert uk.resolve("cuda", "cuda") == "cuda"
    else:
        with pytest.raises(ValueError, match=r"not built, or without CUDA; .*pip install --no-build-isolation \."):
            uk.resolve("cuda", "cuda")
    with pytest.raises(ValueError, match="difficulty_weight: backend 'cuda' has box_iou, grpo_loss only; use backend"):
        uk.difficulty_weight(torch.zeros(1), backend="cuda")


def call_face(case, config: uk.GrpoConfig, inplace: bool) -> tuple[uk.GrpoOutput, Tensor]:
    """cuda_impl on CPU tensors, where its ops are the C++ ones: the Python around the kernel."""
    from univg_kernels._row_checks import check_rows
    from univg_kernels.grpo_loss import cuda_impl

    leaf = case.logits.detach().clone().requires_grad_()
    rows = check_rows("test", leaf.shape[0], leaf.device, config, case.cu_seqlens, dict(case.rows))
    out = cuda_impl.grpo_loss(leaf * 1, case.token_ids, rows, config, inplace)
    return out, torch.autograd.grad(out.loss, leaf)[0]


@pytest.mark.parametrize("vocab_size", [None, 41])
@pytest.mark.parametrize("inplace", [True, False])
def test_face(make_case, monkeypatch: pytest.MonkeyPatch, inplace: bool, vocab_size: int | None) -> None:
    pytest.importorskip("triton", reason="the face scales its gradient with a Triton kernel")
    from univg_kernels._autograd import scale_on_host
    from univg_kernels.group_advantage import cpp_impl
    from univg_kernels.grpo_loss import cuda_impl

    # What it takes from the Triton faces has a counterpart on the CPU.
    monkeypatch.setattr(cuda_impl, "scale_on_device", scale_on_host)
    monkeypatch.setattr(cuda_impl, "group_advantage", cpp_impl.group_advantage)
    config = uk.GrpoConfig(vocab_size=vocab_size, temperature=1.2)
    case = make_case(vocab=50, temperature=1.2).to(torch.float32)
    case.token_ids.clamp_(max=40)
    out, gradient = call_face(case, config, inplace)
    z = case.logits.clone().requires_grad_()
    want = uk.grpo_loss(z, case.token_ids, case.cu_seqlens, config=config, inplace=False, backend="cpp", **case.rows)
    torch.testing.assert_close(out, want)
    torch.testing.assert_close(gradient, torch.autograd.grad(want.loss, z)[0])


def test_refusals(make_case) -> None:
    pytest.importorskip("triton", reason="the face scales its gradient with a Triton kernel")
    case = make_case().to(torch.float32)
    with pytest.raises(ValueError, match="a row depends on its response .*importance_sampling_level='sequence'"):
        call_face(case, uk.GrpoConfig(importance_sampling_level="sequence"), True)
    with pytest.raises(ValueError, match="got torch.float64; use backend='reference'"):
        call_face(case.to(torch.float64), uk.GrpoConfig(), True)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("vocab", [1, 50, 4099, 32000, 152064])
def test_on_a_gpu(make_case, assert_no_worse, vocab: int, inplace: bool, dtype: torch.dtype) -> None:
    if not _dispatch._has_cuda_ops() or torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("needs a library built with CUDA and a GPU with clusters")
    config = uk.GrpoConfig(temperature=0.9, entropy_coef=0.1, entropy_aggregation="loss")
    base = make_case(seed=21, lengths=(7, 0, 30, 12), groups=(2, 2), vocab=vocab, temperature=0.9)

    def outcome(backend: uk.Backend, of: torch.dtype, over: bool) -> tuple[uk.GrpoOutput, Tensor]:
        case = base.to(of)
        rows = {k: v.cuda() if isinstance(v, Tensor) else v for k, v in case.rows.items()}
        leaf = case.logits.cuda().requires_grad_()
        arguments = dict(config=config, inplace=over, backend=backend, **rows)
        out = uk.grpo_loss(leaf * 1, case.token_ids.cuda(), case.cu_seqlens, **arguments)
        return out, torch.autograd.grad(out.loss, leaf)[0]

    truth, true_gradient = outcome("reference", torch.float64, False)
    eager, eager_gradient = outcome("reference", dtype, False)
    got, gradient = outcome("cuda", dtype, inplace)
    for name in ("loss", "logp"):
        assert_no_worse(name, getattr(got, name), getattr(eager, name), getattr(truth, name), dtype)
    for i, name in enumerate(uk.METRICS):
        assert_no_worse(name, got.metrics[i], eager.metrics[i], truth.metrics[i], dtype)
    assert_no_worse("d logits", gradient, eager_gradient, true_gradient, dtype)
