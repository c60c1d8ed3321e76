"""The row head is compiled for three instruction sets, and a machine runs one of them: prove the others, too."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable
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
extern "C" void head(const void* z, void* out, int64_t vocab, int64_t id, double scale, double cap, double a,
                     double b, float* stats, int half) {
  auto run = [&](auto* in, auto* grad) {
    const Squash<float> squash = make_squash<float>(scale, cap);
    const RowStats<float> s = row_stats(in, vocab, id, squash);
    stats[0] = s.logp, stats[1] = s.entropy;
    row_grad(grad, in, vocab, id, squash, s.lse, s.entropy, float(a), float(b));
  };
  using B = torch::headeronly::BFloat16;
  if (half) run(static_cast<const B*>(z), static_cast<B*>(out));
  else run(static_cast<const float*>(z), static_cast<float*>(out));
}
"""


@pytest.fixture(scope="module", params=LEVELS)
def head(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., None]:
    """`head` of the shim, compiled so that it runs the code of one level."""
    level = request.param
    if level == "avx2" and torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("this CPU has no AVX2")
    folder = tmp_path_factory.mktemp(level)
    (folder / "shim.cpp").write_text(SHIM)
    include = Path(torch.__file__).parent / "include"
    subprocess.run(
        [
            *(str(COMPILER), "-std=c++20", "-O3", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math", "-shared"),
            *("-fPIC", f"-D__builtin_cpu_supports(name)={LEVELS[level]}", "-DTORCH_TARGET_VERSION=0x020a000000000000"),
            *("-isystem", str(include), f"-I{CSRC}", str(folder / "shim.cpp"), str(CSRC / "cpu" / "row_head.cpp")),
            *("-o", str(folder / "shim.so")),
        ],
        check=True,
    )
    return ctypes.CDLL(str(folder / "shim.so")).head


@pytest.mark.parametrize("cap", [0.0, 6.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_row_head(head: Callable[..., None], dtype: torch.dtype, cap: float, assert_no_worse) -> None:
    z = (torch.randn(2500, generator=torch.Generator().manual_seed(0)) * 4).to(dtype)
    z[7] = -torch.inf
    out, stats = torch.empty_like(z), torch.empty(2)
    head(
        *(ctypes.c_void_p(z.data_ptr()), ctypes.c_void_p(out.data_ptr()), ctypes.c_int64(2500), ctypes.c_int64(42)),
        *(ctypes.c_double(1.25), ctypes.c_double(cap), ctypes.c_double(1.5), ctypes.c_double(-0.3)),
        *(ctypes.c_void_p(stats.data_ptr()), ctypes.c_int(dtype == torch.bfloat16)),
    )

    def eager(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = x.clone().requires_grad_()
        wide = (x if x.dtype == torch.float64 else x.float()) * 1.25
        log_p = torch.log_softmax(cap * torch.tanh(wide / cap) if cap else wide, -1)
        values = torch.stack([log_p[42], -(log_p.exp() * log_p.masked_fill(log_p.isinf(), 0)).sum()])
        (1.5 * values[0] - 0.3 * values[1]).backward()
        return values.detach(), x.grad

    for what, got, e, t in zip(("stats", "gradient"), (stats, out), eager(z), eager(z.double()), strict=True):
        assert_no_worse(what, got, e, t, dtype)
