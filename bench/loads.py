"""How often the fused Triton kernel of `grpo_loss` reads a logit from global memory. Needs no GPU.

Twice counted: in the PTX that is compiled ahead of time, how many loads stand before and inside the loop of each sweep;
and while the kernel runs in Triton's interpreter, how often each logit is asked for. What comes out of the L2 cache
neither can tell.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import univg_kernels as uk
from univg_kernels._rows import PolicyRows
from univg_kernels._triton.launch import row_launch

KERNEL = "grpo_rows_kernel"
ROOT = Path(__file__).resolve().parents[1]
REGISTERS, THREADS_PER_WARP, LOAD_BYTES = 65536, 32, 16  # of a multiprocessor; of a warp; of one wide load


@dataclass(frozen=True)
class Sweep:
    """16-byte loads of one thread: before the loop, and in each pass of it."""

    before: int
    inside: int


@dataclass(frozen=True)
class Compiled:
    capability: int
    warps: int
    registers: int  # of a thread
    spilled: int  # bytes of a thread's stack and local memory
    tile_bytes: int  # of a row that one pass of a loop covers
    sweeps: tuple[Sweep, ...]

    @property
    def rows_at_once(self) -> int:
        """Programs, one row each, that the registers of a multiprocessor have room for."""
        return REGISTERS // (self.registers * self.warps * THREADS_PER_WARP)


KINDS = ("with a gradient", "without one (zero advantage)", "masked")  # the rows of `run_kernel`


def run_kernel(vocab: int) -> torch.Tensor:
    """Loss and gradient in place through the Triton face, a row of each kind, wherever its launches go."""
    from univg_kernels.grpo_loss import triton_impl

    g = torch.Generator().manual_seed(0)
    logits = torch.randn(3, vocab, generator=g).to(torch.bfloat16).requires_grad_() * 1
    ids = torch.randint(0, vocab, (3,), generator=g)
    rows = PolicyRows(torch.arange(4), advantages=torch.tensor([1.0, 0.0, 1.0]), mask=torch.tensor([True, True, False]))
    triton_impl.grpo_loss(logits, ids, rows, uk.GrpoConfig(beta=0.0), True)
    return ids


def compile_kernel(capability: int, vocab: int) -> Compiled:
    aot = _ahead_of_time()
    launch = aot.record_one(lambda: run_kernel(vocab), KERNEL)
    with tempfile.TemporaryDirectory() as folder:
        binary = aot.compile_for(launch, capability, Path(folder))
    lanes, vec, warps = row_launch(vocab, 2)
    spilled = binary.stack + binary.local
    return Compiled(capability, warps, binary.registers, spilled, 2 * lanes * vec, find_sweeps(binary.ptx))


def find_sweeps(ptx: str) -> tuple[Sweep, ...]:
    """The wide loads in the order of the text; those inside a loop belong to the ones that stand just before it."""
    lines = ptx.splitlines()
    labels = {m[1]: i for i, line in enumerate(lines) if (m := re.match(r"(\$L__BB\w+):", line))}
    jumps = [
        (i, labels.get(m[1], i)) for i, line in enumerate(lines) if (m := re.search(r"\bbra\S*\s+(\$L__BB\w+)", line))
    ]
    loops = [(start, end) for end, start in jumps if start < end]
    sweeps: list[Sweep] = []
    before = inside = 0
    for i, line in enumerate(lines):
        if "ld.global.v4.b32" not in line:
            continue
        if any(start < i < end for start, end in loops):
            inside += 1
        else:
            if inside:
                sweeps.append(Sweep(before, inside))
                before = inside = 0
            before += 1
    return (*sweeps, Sweep(before, inside))


Reads = dict[str, tuple[list[int], int]]


def count_reads(vocab: int = 1000) -> Reads:
    """Kind of row -> (reads of its logits, all values there are; reads of the target's logit), of a run in the
    interpreter, which only a process of its own can be told to use."""
    command = [sys.executable, "-m", "bench.loads", str(vocab)]
    env = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return {kind: (plain, target) for kind, (plain, target) in json.loads(done.stdout.splitlines()[-1]).items()}


def _count_here(vocab: int) -> Reads:
    import numpy as np
    from triton.runtime import interpreter

    asked: list[Any] = []
    load = interpreter.interpreter_builder.create_masked_load

    def counting(ptrs: Any, mask: Any, *others: Any) -> Any:
        if ptrs.get_element_ty().name == "bf16":  # the logits, and nothing else here
            asked.append(np.asarray(ptrs.data)[np.asarray(mask.data, dtype=bool)].ravel())
        return load(ptrs, mask, *others)

    interpreter.interpreter_builder.create_masked_load = counting
    ids = run_kernel(vocab)
    places = np.concatenate(asked).astype(np.int64)
    reads = np.bincount((places - places.min()) // 2, minlength=len(KINDS) * vocab).reshape(len(KINDS), vocab)
    out = {}
    for kind, target, row in zip(KINDS, ids.tolist(), reads, strict=True):
        out[kind] = (sorted({int(x) for x in np.delete(row, target)}), int(row[target]))
    return out


def _ahead_of_time() -> ModuleType:
    """tests/ops/aot.py, which compiles what a launcher launches; tests are no package."""
    spec = importlib.util.spec_from_file_location("_bench_aot", ROOT / "tests" / "ops" / "aot.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    print(json.dumps(_count_here(int(sys.argv[1]))))
