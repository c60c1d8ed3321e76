"""What is measured: the variants of one op on one problem, and how each is judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .device import Device
from .peers import Absent
from .shapes import Shape

Outcome = dict[str, Tensor]  # "loss", "logp", …, and "d_NAME" for the gradient of NAME
Run = Callable[[], Outcome]
Prepare = Callable[[], Run]  # makes fresh inputs, which is not timed, and returns what is


@dataclass(frozen=True)
class Judge:
    """What an outcome is compared with: the same problem in fp64, and what eager torch makes of it in the dtype."""

    truth: Prepare
    eager: Prepare


@dataclass(frozen=True)
class Variant:
    prepare: Prepare
    judge: Judge | None  # None: bare products, the yardstick of a linear head
    own: bool = False  # a face of this project: held to the full bar, and a failure fails the command
    flops: float = 0  # of the products that it cannot do without
    result_bytes: float = 0  # of the gradients that it hands over: memory, but no overhead


@dataclass(frozen=True)
class Work:
    variants: dict[str, Variant]
    absent: dict[str, str] = field(default_factory=dict)  # peer -> why it is not here
    floor_bytes: float = 0  # what must cross memory at least, read and written
    avoided_bytes: float = 0  # of the logits that need not be held twice, or at all


@dataclass(frozen=True)
class Inputs:
    """Differentiable inputs by name. `overwritten`: an op may write its gradient over them, so each run gets a copy."""

    tensors: dict[str, Tensor]
    overwritten: bool = False

    def prepared(
        self,
        function: Callable[..., Outcome],
        *,
        upstream: dict[str, Tensor] | None = None,
        frozen: tuple[str, ...] = (),
        wide: bool = False,
    ) -> Prepare:
        """Forward and backward of `function` (of the inputs, in order). `upstream`: gradients of its outputs, None
        where it gives a loss. `frozen`: inputs that want no gradient. `wide`: in fp64."""

        def prepare() -> Run:
            leaves = {n: t.to(torch.float64 if wide else t.dtype).detach() for n, t in self.tensors.items()}
            for name, leaf in leaves.items():
                leaf.requires_grad_(name not in frozen)
            # What losses see has a history, like the output of a model.
            copied = self.overwritten and not wide
            seen = [t.clone() if copied else t.view_as(t) for t in leaves.values()]

            def run() -> Outcome:
                out = function(*seen)
                wanted = [name for name in leaves if name not in frozen]
                ends = ["loss"] if upstream is None else list(upstream)
                weights = None if upstream is None else [upstream[e].to(out[e].dtype) for e in ends]
                grads = torch.autograd.grad([out[e] for e in ends], [leaves[n] for n in wanted], weights)
                done = {name: value.detach() for name, value in out.items()}
                return done | {f"d_{name}": g for name, g in zip(wanted, grads, strict=True)}

            return run

        return prepare

    def judge(self, function: Callable[..., Outcome], **options: Any) -> Judge:
        """Eager torch in fp64 and in the inputs' own dtype."""
        return Judge(self.prepared(function, wide=True, **options), self.prepared(function, **options))


Makers = dict[str, Callable[[], Variant]]


def collect(makers: Makers) -> tuple[dict[str, Variant], dict[str, str]]:
    """(the variants that can be had here, why the others cannot)."""
    variants, absent = {}, {}
    for name, make in makers.items():
        try:
            variants[name] = make()
        except Absent as reason:
            absent[name] = str(reason)
    return variants, absent


@dataclass(frozen=True)
class Case:
    op: str
    dtype: str
    shape: Shape
    label: str
    build: Callable[[Shape, torch.dtype, Device], Work]
    share: float = 1.0  # of the time there is

    @property
    def name(self) -> str:
        parts = (self.op, self.dtype, str(self.shape), self.label)
        return "_".join(p for p in parts if p)
