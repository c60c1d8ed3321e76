"""`policy_loss`: the row program alone, every loss type. Small: what costs is the number of launches."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import univg_kernels as uk
from torch import Tensor
from univg_kernels.config import CHOICES

from ..device import Device
from ..problem import faces, generator, make_rows
from ..shapes import Shape, Shapes
from ..work import Case, Inputs, Makers, Outcome, Variant, Work, collect


def cases(shapes: Shapes) -> list[Case]:
    return [
        Case("policy_loss", d, s, kind, partial(build, kind=kind), share=0.2)
        for s in shapes["policy_loss"]
        for d in s.dtypes
        for kind in CHOICES["loss_type"]
    ]


def build(shape: Shape, dtype: torch.dtype, device: Device, kind: str) -> Work:
    logp = -torch.empty(shape.rows, device=device.torch).exponential_(generator=generator(device, 6)).to(dtype)
    rows = make_rows(shape, device, logp.new_zeros(shape.rows, dtype=torch.int64), logp)
    config = uk.GrpoConfig(loss_type=kind, max_completion_length=shape.length, beta=0.0)
    inputs = Inputs({"logp": logp})

    def call(backend: uk.Backend) -> Callable[[Tensor], Outcome]:
        return lambda x: {"loss": uk.policy_loss(x, **rows.policy, config=config, backend=backend).loss}

    judge = inputs.judge(call("reference"))
    makers: Makers = {}
    for name, b in faces(device).items():
        makers[name] = lambda b=b: Variant(inputs.prepared(call(b)), judge, own=True)  # type: ignore[misc]
    if kind == "grpo":  # one stands for all: each compilation takes as long as all these cases
        spec = torch.compile(call("reference"), dynamic=False)
        makers["torch.compile"] = lambda: Variant(inputs.prepared(spec), judge)
    variants, absent = collect(makers)
    return Work(variants, absent, floor_bytes=4.0 * logp.numel() * logp.element_size())
