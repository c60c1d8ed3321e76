"""The GPU faces of `box_iou`: what nvcc makes of one, the other in Triton's interpreter, and on a GPU both."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import univg_kernels as uk
from ops.box_cases import KINDS, draw, gradients, ragged
from univg_kernels import _dispatch


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["sm_90", "sm_100"])
def test_the_cuda_kernels_compile_without_spills(architecture: str, tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    known = nvcc and subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True).stdout.split()
    if nvcc is None or architecture not in (known or []):
        pytest.skip(f"no nvcc that knows {architecture}")
    flags = ("-std=c++20", f"-arch={architecture}", "-O3", "--expt-relaxed-constexpr", "--fmad=false", "-cubin")
    include = str(Path(torch.__file__).parent / "include")
    torch_flags = ("-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020a000000000000", "-isystem", include)
    source = Path(__file__).parents[2] / "csrc" / "cuda" / "box_iou.cu"
    command = [nvcc, *flags, *torch_flags, "-Xptxas", "-v", "-o", str(tmp_path / "box.cubin"), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "warning" not in done.stderr, done.stderr
    frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr)
    assert len(frames) == 18 and set(frames) == {("0", "0", "0")}  # three kernels, three kinds, two dtypes


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("mode", ["aligned", "pairwise", "ragged"])
@pytest.mark.parametrize(("kind", "convention"), KINDS)
@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_on_a_gpu(backend: Any, kind: str, convention: str, mode: str, dtype: torch.dtype) -> None:
    if backend == "cuda" and not _dispatch._has_cuda_ops():
        pytest.skip("needs a library built with CUDA")
    a, b, offsets = ragged(7, dtype, high=6)
    options = dict(mode=mode, kind=kind, convention=convention)
    if mode == "aligned":
        a, b = draw(5000, 8, dtype, 9), draw(5000, 9, dtype, 9)
    here, there = (({k: v.to(d) for k, v in offsets.items()} if mode == "ragged" else {}) for d in ("cpu", "cuda"))
    got = uk.box_iou(a.cuda(), b.cuda(), backend=backend, **options, **there)
    torch.testing.assert_close(got.cpu(), uk.box_iou(a, b, backend="reference", **options, **here))
    grads = gradients(a.cuda(), b.cuda(), backend, **options, **there)
    for one, two in zip(grads, gradients(a, b, "reference", **options, **here), strict=True):
        torch.testing.assert_close(one.cpu(), two)


IN_THE_INTERPRETER = """
import itertools, torch, univg_kernels as uk
g = torch.Generator().manual_seed(2)
boxes = torch.randint(0, 5, (700, 4), generator=g).double()
boxes[3, 1], boxes[9, 2], boxes[11] = float("nan"), float("inf"), 1e200
cu = torch.tensor([0, 3, 3, 20]), torch.tensor([0, 2, 9, 30])
cases = {
    "aligned": (boxes, boxes.roll(1, 0), {}),
    "pairwise": (boxes[:40], boxes[40:77], {}),
    "ragged": (boxes[:20], boxes[20:50], dict(offsets1=cu[0], offsets2=cu[1])),
}
for (mode, (a, b, more)), dtype, (kind, convention) in itertools.product(
    cases.items(), (torch.float32, torch.float64), (("iou", "continuous"), ("giou", "continuous"), ("iou", "univg_r1"))
):
    results = []
    for backend in ("triton", "reference"):
        leaves = [x.to(dtype).requires_grad_() for x in (a, b)]
        out = uk.box_iou(*leaves, mode=mode, kind=kind, convention=convention, backend=backend, **more)
        weights = torch.linspace(-1, 2, out.numel(), dtype=dtype).view(out.shape)
        results.append((out.detach(), *torch.autograd.grad(out, leaves, weights)))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)
"""


def test_triton_face_with_gradients() -> None:
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", IN_THE_INTERPRETER], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
