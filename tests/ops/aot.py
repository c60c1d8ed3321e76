"""Compiles ahead of time, without a GPU, exactly what the launchers launch.

A launcher is run on CPU tensors while `JITFunction.run` is replaced by a recorder. Which arguments are constants, their
types and their alignment are worked out by triton's own binder.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

OPTIONS = ("num_warps", "num_stages", "num_ctas", "maxnreg", "enable_fp_fusion")
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


def target(capability: int) -> GPUTarget:
    return GPUTarget("cuda", capability, 32)


@dataclass(frozen=True)
class Launch:
    """One recorded launch."""

    kernel: JITFunction
    programs: int
    source: ASTSource
    options: dict[str, Any]


def bound(kernel: JITFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ASTSource:
    backend = make_backend(target(90))  # what is specialised does not depend on the capability
    binder = create_function_from_signature(kernel.signature, kernel.params, backend)
    arguments, specialization, options = binder(*args, **kwargs)
    _, signature, constants, attributes = kernel._pack_args(backend, kwargs, arguments, specialization, options)
    return ASTSource(kernel, signature, constants, attributes)


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Launches inside this block run nothing and are listed."""
    launches: list[Launch] = []

    def record(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        assert len(grid) == 1, "only the first dimension of a grid holds more than 65,535 programs"
        options = {k: kwargs[k] for k in OPTIONS if k in kwargs}
        launches.append(Launch(self, grid[0], bound(self, args, kwargs), options))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JITFunction, "run", record)
        yield launches


@dataclass(frozen=True)
class Binary:
    registers: int
    stack: int
    local: int
    ptx: str
    ttgir: str

    def loads_of(self, dtype: str) -> list[str]:
        """Loads of tiles [LANES, VEC] of that element type, one entry for each place in the program."""
        return re.findall(rf"tt\.load .*tensor<(\d+x\d+)x!tt\.ptr<{dtype}>", self.ttgir)


def compile_for(launch: Launch, capability: int, folder: Path) -> Binary:
    compiled = triton.compile(launch.source, target=target(capability), options=launch.options)
    cubin = folder / f"{launch.kernel.__name__}_{capability}.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    command = [str(CUOBJDUMP), "--dump-resource-usage", str(cubin)]
    usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def figure(name: str) -> int:
        found = re.search(rf"\b{name}:(\d+)", usage)
        assert found, f"no {name} in: {usage}"
        return int(found.group(1))

    return Binary(figure("REG"), figure("STACK"), figure("LOCAL"), compiled.asm["ptx"], compiled.asm["ttgir"])


def record_one(run: Callable[[], Any], name: str) -> Launch:
    """The launch of kernel `name` that `run` makes."""
    with recorded() as launches:
        run()
    (found, *more) = [x for x in launches if x.kernel.__name__ == name]
    assert not more, f"{name} was launched {1 + len(more)} times"
    return found
