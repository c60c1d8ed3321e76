"""`group_advantage` with its difficulty weight: rewards of the responses to advantages and phi. Not differentiable."""

from __future__ import annotations

import torch
import univg_kernels as uk

from ..device import Device
from ..problem import faces, generator
from ..shapes import Shape, Shapes
from ..work import Case, Judge, Outcome, Prepare, Variant, Work

GROUP = 8


def cases(shapes: Shapes) -> list[Case]:
    return [Case("group_advantage", d, s, "", build, share=0.2) for s in shapes["groups"] for d in s.dtypes]


def build(shape: Shape, dtype: torch.dtype, device: Device) -> Work:
    g = generator(device, 7)
    rewards, accuracy = (torch.rand(shape.rows, device=device.torch, generator=g) for _ in range(2))
    cu_groups = torch.arange(0, shape.rows + 1, GROUP, device=device.torch)

    def prepared(backend: uk.Backend, wide: torch.dtype = torch.float32) -> Prepare:
        def run() -> Outcome:
            out = uk.group_advantage(rewards.to(wide), cu_groups, accuracy=accuracy.to(wide), backend=backend)
            return {"advantages": out.advantages, "phi": out.phi}

        return lambda: run

    judge = Judge(prepared("reference", torch.float64), prepared("reference"))
    variants = {name: Variant(prepared(b), judge, own=True) for name, b in faces(device).items()}
    return Work(variants, floor_bytes=16.0 * shape.rows)
