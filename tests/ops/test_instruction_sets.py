"""The row head is compiled for three instruction sets, and a machine runs one of them: prove the others, too."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

CSRC = Path(__file__).parents[2] / "csrc"
COMPILER = shutil.which("c++")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")]

# What __builtin_cpu_supports(name) is made to answer. The machine must really have what is claimed.
LEVELS = {"base": "0", "avx2": "(name[3] == '2' || name[0] == 'f')"}
SHIM = """
#include "cpu/row_head.h"
using namespace univg;
extern "C" void head(const void* z, void* out, int64_t vocab, int64_t id, double t, double a, double b,
                     float* stats, int half) {
  auto run = [&](auto* in, auto* grad) {
    const RowStats<float> s = row_stats(in, vocab, id, float(1 / t));
    stats[0] = s.logp, stats[1] = s.entropy;
    row_grad(grad, in, vocab, id, float(1 / t), s.lse, s.entropy, float(a), float(b));
  };
  using B = torch::headeronly::BFloat16;
  if (half) run(static_cast<const B*>(z), static_cast<B*>(out));
  else run(static_cast<const float*>(z), static_cast<float*>(out));
}
"""


@pytest.mark.parametrize("level", LEVELS)
def test_row_head(level: str, tmp_path: Path, assert_no_worse) -> None:
    if level == "avx2" and torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("this CPU has no AVX2")
    (tmp_path / "shim.cpp").write_text(SHIM)
    include = Path(torch.__file__).parent / "include"
    subprocess.run(
        [
            *(str(COMPILER), "-std=c++20", "-O3", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math", "-shared"),
            *("-fPIC", f"-D__builtin_cpu_supports(name)={LEVELS[level]}", "-DTORCH_TARGET_VERSION=0x020a000000000000"),
            *("-isystem", str(include), f"-I{CSRC}", str(tmp_path / "shim.cpp"), str(CSRC / "cpu" / "row_head.cpp")),
            *("-o", str(tmp_path / "shim.so")),
        ],
        check=True,
    )
    head = ctypes.CDLL(str(tmp_path / "shim.so")).head
    for dtype in (torch.float32, torch.bfloat16):
        z = (torch.randn(2500, generator=torch.Generator().manual_seed(0)) * 4).to(dtype)
        z[7] = -torch.inf
        out, stats = torch.empty_like(z), torch.empty(2)
        head(
            *(ctypes.c_void_p(z.data_ptr()), ctypes.c_void_p(out.data_ptr()), ctypes.c_int64(2500), ctypes.c_int64(42)),
            *(ctypes.c_double(0.8), ctypes.c_double(1.5), ctypes.c_double(-0.3)),
            *(ctypes.c_void_p(stats.data_ptr()), ctypes.c_int(dtype == torch.bfloat16)),
        )

        def eager(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            x = x.clone().requires_grad_()
            wide = x if x.dtype == torch.float64 else x.float()
            log_p = torch.log_softmax(wide / 0.8, -1)
            values = torch.stack([log_p[42], -(log_p.exp() * log_p.masked_fill(log_p.isinf(), 0)).sum()])
            (1.5 * values[0] - 0.3 * values[1]).backward()
            return values.detach(), x.grad

        for what, got, e, t in zip(("stats", "gradient"), (stats, out), eager(z), eager(z.double()), strict=True):
            assert_no_worse(f"{level} {what}", got, e, t, dtype)
