"""`box_iou`: aligned pairs of boxes, against the loop over Python numbers that reward functions are written as, and
against the shortest torch code for it (no care for NaN or inverted boxes)."""

from __future__ import annotations

import torch
import univg_kernels as uk

from ..device import Device
from ..problem import faces, generator
from ..shapes import Shape, Shapes
from ..work import Case, Judge, Outcome, Prepare, Variant, Work


def cases(shapes: Shapes) -> list[Case]:
    return [Case("box_iou", d, s, "", build, share=0.5) for s in shapes["box_iou"] for d in s.dtypes]


def loop(first: list[list[int]], second: list[list[int]]) -> list[float]:
    out = []
    for p, q in zip(first, second, strict=True):
        w, h = min(p[2], q[2]) - max(p[0], q[0]), min(p[3], q[3]) - max(p[1], q[1])
        inter = w * h if w > 0 and h > 0 else 0
        union = max(p[2] - p[0], 0) * max(p[3] - p[1], 0) + max(q[2] - q[0], 0) * max(q[3] - q[1], 0) - inter
        out.append(inter / union if inter else 0.0)
    return out


def build(shape: Shape, dtype: torch.dtype, device: Device) -> Work:
    g = generator(device, 8)
    corners = torch.randint(0, 1001, (2, shape.rows, 2, 2), device=device.torch, generator=g)
    first, second = corners.sort(2).values.flatten(2).to(dtype)

    def prepared(backend: uk.Backend) -> Prepare:
        def run() -> Outcome:
            return {"iou": uk.box_iou(first, second, backend=backend)}

        return lambda: run

    lists = first.tolist(), second.tolist()

    def python() -> Outcome:
        return {"iou": torch.tensor(loop(*lists), dtype=torch.float64, device=device.torch)}

    def torch_ops() -> Outcome:
        low, high = torch.maximum(first[:, :2], second[:, :2]), torch.minimum(first[:, 2:], second[:, 2:])
        width, height = (high - low).clamp(min=0).unbind(1)
        one, two = ((x[:, 2] - x[:, 0]) * (x[:, 3] - x[:, 1]) for x in (first, second))
        return {"iou": torch.nan_to_num(width * height / (one + two - width * height))}

    judge = Judge(lambda: python, prepared("reference"))
    own = {name: Variant(prepared(b), judge, own=True) for name, b in faces(device).items()}
    peers = {"python loop": Variant(lambda: python, judge), "torch ops": Variant(lambda: torch_ops, judge)}
    return Work({**peers, **own}, floor_bytes=shape.rows * (2 * 16.0 + 4))
