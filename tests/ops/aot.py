"""Compiles ahead of time, without a GPU, exactly what the launchers launch.

A launcher is run on CPU tensors while `JITFunction.run` is replaced by a recorder: the signature, the constants and the
alignment of each argument are then those of the real launch, worked out by triton's own rules for specialisation.
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
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

OPTIONS = ("num_warps", "num_stages", "num_ctas", "maxnreg", "enable_fp_fusion")
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
POINTERS = {
    torch.float64: "*fp64", torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16",
    torch.int64: "*i64", torch.int32: "*i32", torch.bool: "*i1",
}  # fmt: skip


@dataclass(frozen=True)
class Launch:
    """One recorded launch."""

    kernel: JITFunction
    programs: int
    arguments: dict[str, Any]
    options: dict[str, Any]

    def source(self) -> ASTSource:
        signature: dict[str, str] = {}
        constants: dict[str, Any] = {}
        attributes: dict[tuple[int, ...], list[list[Any]]] = {}
        for i, parameter in enumerate(self.kernel.params):
            value = self.arguments[parameter.name]
            kind, aligned = self._describe(parameter, value)
            signature[parameter.name] = kind
            if kind == "constexpr":
                constants[parameter.name] = value
            elif aligned:
                attributes[(i,)] = [["tt.divisibility", 16]]
        return ASTSource(self.kernel, signature, constants, attributes)

    def _describe(self, parameter: Any, value: Any) -> tuple[str, bool]:
        special = not parameter.do_not_specialize
        if parameter.is_constexpr or value is None:
            return "constexpr", False
        if isinstance(value, torch.Tensor):
            return POINTERS[value.dtype], value.data_ptr() % 16 == 0
        if isinstance(value, float):
            return "fp32", False
        assert isinstance(value, int) and not isinstance(value, bool), (parameter.name, value)
        if special and value == 1:
            return "constexpr", False
        return ("i32" if -(2**31) <= value < 2**31 else "i64"), special and value % 16 == 0


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Launches inside this block run nothing and are listed."""
    launches: list[Launch] = []

    def record(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        options = {k: kwargs.pop(k) for k in OPTIONS if k in kwargs}
        arguments = dict(zip(self.arg_names, args, strict=False)) | kwargs
        assert set(arguments) == set(self.arg_names), set(arguments) ^ set(self.arg_names)
        launches.append(Launch(self, grid[0], arguments, options))

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
    compiled = triton.compile(launch.source(), target=GPUTarget("cuda", capability, 32), options=launch.options)
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
