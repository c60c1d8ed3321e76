"""`matched_iou`: sets of boxes matched to sets of boxes, against SciPy's assignment called for each pair of sets."""

from __future__ import annotations

from typing import Any

import torch
import univg_kernels as uk
from torch import Tensor

from .. import peers
from ..device import Device
from ..problem import generator
from ..shapes import Shape, Shapes
from ..work import Case, Judge, Makers, Outcome, Prepare, Run, Variant, Work, collect


def cases(shapes: Shapes) -> list[Case]:
    return [Case("matched_iou", d, s, "", build, share=0.3) for s in shapes.get("matched_iou", ()) for d in s.dtypes]


def build(shape: Shape, dtype: torch.dtype, device: Device) -> Work:
    """`rows` pairs of sets of `length` boxes each."""
    g = generator(device, 9)
    corners = torch.randint(0, 800, (2, shape.rows * shape.length, 2), generator=g)
    first, second = torch.cat([corners, corners + torch.randint(50, 400, corners.shape, generator=g)], -1)
    offsets = torch.arange(0, len(first) + 1, shape.length)

    def prepared(backend: uk.Backend) -> Prepare:
        def run() -> Outcome:
            return {"total": uk.matched_iou(first, second, offsets, offsets, backend=backend).total}

        return lambda: run

    judge = Judge(prepared("reference"), prepared("reference"))
    makers: Makers = {
        "scipy": lambda: Variant(_scipy(first.view(shape.rows, -1, 4), second.view(shape.rows, -1, 4)), judge)
    }
    backends: tuple[Any, ...] = (uk.resolve("cpu"), "reference")  # boxes are matched on the CPU
    for b in dict.fromkeys(backends):
        makers[f"univg {b}"] = lambda b=b: Variant(prepared(b), judge, own=True)  # type: ignore[misc]
    return Work(*collect(makers))


def _scipy(first: Tensor, second: Tensor) -> Prepare:
    assign = peers.load("scipy.optimize", "scipy").linear_sum_assignment

    def run() -> Outcome:
        totals = []
        for one, two in zip(first, second, strict=True):
            table = uk.box_iou(one.double(), two.double(), mode="pairwise").numpy()
            totals.append(table[assign(table, maximize=True)].sum())
        return {"total": torch.tensor(totals, dtype=torch.float64)}

    def prepare() -> Run:
        return run

    return prepare
