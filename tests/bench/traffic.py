"""Bytes that operations read and write, counted as they run; as a command, those of DeepSpeed's steps on this world's
ranks: a line of JSON with {ZeRO stage: {"row", "step"}} in bytes a parameter."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

BLIND = ("copy_", "zero_", "fill_", "_foreach_zero_", "_foreach_copy_")  # do not read what they write
MADE = ("empty", "new_empty")  # written by nobody yet
VIEWS = ("_unsafe_view",)  # though their schema does not say so
COLLECTIVES = ("allreduce_", "_allgather_base_", "_reduce_scatter_base_", "broadcast_", "barrier")


class Traffic(TorchDispatchMode):
    """`moved`: bytes by the name of the operation; an operation reads its inputs once and writes its results once."""

    def __init__(self) -> None:
        super().__init__()
        self.moved: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out, schema = func(*args, **(kwargs or {})), func._schema
        name = schema.name.split("::")[-1]
        aliases = [x.alias_info for x in schema.returns]
        if name in VIEWS or any(alias is not None and not alias.is_write for alias in aliases):
            return out
        given = dict(zip((a.name for a in schema.arguments), args, strict=False)) | (kwargs or {})
        for argument in schema.arguments:
            written = argument.alias_info is not None and argument.alias_info.is_write
            if name == "_fused_adamw_" and argument.name == "grads":
                written = False  # only where a loss scale is taken out of them
            times = written + (not (written and name in BLIND))
            self.moved[name] += times * size(given.get(argument.name))
        if None in aliases and not name.startswith(MADE):
            self.moved[name] += size(out)
        return out

    def total(self, without: tuple[str, ...] = COLLECTIVES) -> int:
        return sum(n for name, n in self.moved.items() if name not in without)


def size(x: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tree_leaves(x) if isinstance(t, torch.Tensor))


def bytes_of_steps() -> dict[int, dict[str, float]]:
    """Of a row after the first, beyond its products, and of the step; ZeRO 0 in fp32, else bf16."""
    from univg_fast import distributed
    from univg_fast.config.schema import DeepSpeedConfig, OptimConfig
    from univg_fast.train.engine import make_engine, release

    distributed.init()
    found = {}
    for zero in range(4):
        dtype = torch.bfloat16 if zero else torch.float32
        module = torch.nn.Sequential(*[torch.nn.Linear(512, 512, bias=False) for _ in range(4)]).to(dtype)
        numbers, x = sum(p.numel() for p in module.parameters()), torch.ones(1, 512, dtype=dtype)
        with Traffic() as plain:
            torch.autograd.grad(module(x).sum(), list(module.parameters()))
        engine = make_engine(module, OptimConfig(), DeepSpeedConfig(zero_stage=zero), 10)
        for _ in range(2):  # the first makes the moments
            for _ in range(2):
                loss = engine(x).sum()
                with Traffic() as row:
                    engine.backward(loss, scale_wrt_gas=False)
            with Traffic() as step:
                engine.step()
        row.moved["mm"] = plain.moved["mm"] = 0
        found[zero] = {"row": row.total() / numbers, "step": step.total() / numbers}
        release(engine)
    if distributed.is_main():
        print(json.dumps(found), flush=True)
    return found


if __name__ == "__main__":
    bytes_of_steps()
