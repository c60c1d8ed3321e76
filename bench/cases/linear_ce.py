"""`linear_ce`: mean cross entropy of hidden states, three products; where QuACK and Liger's fused head are at home."""

from __future__ import annotations

from collections.abc import Callable

import torch
import univg_kernels as uk
from torch import Tensor

from .. import eager, peers
from ..device import Device
from ..problem import faces, make_head, make_ids
from ..shapes import Shape, Shapes
from ..work import Case, Inputs, Makers, Variant, Work, collect
from .linear_grpo_loss import products, products_flops, result_bytes

Loss = Callable[[Tensor, Tensor], Tensor]


def cases(shapes: Shapes) -> list[Case]:
    shape = shapes["linear_peers"][0]
    return [Case("linear_ce", d, shape, "", build, share=3) for d in shape.dtypes]


def build(shape: Shape, dtype: torch.dtype, device: Device) -> Work:
    hidden, weight = make_head(shape, dtype, device)
    ids = make_ids(shape, device)
    inputs = Inputs({"hidden": hidden, "weight": weight})
    row_weight = 1 / shape.rows

    def mean(logp: Callable[..., Tensor]) -> Loss:
        return lambda h, w: -logp(h, w, ids).mean()

    judge = inputs.judge(lambda h, w: {"loss": mean(eager.linear_log_softmax)(h, w)})

    def variant(loss: Loss, own: bool = False) -> Variant:
        run = inputs.prepared(lambda h, w: {"loss": loss(h, w)})
        return Variant(run, judge, own, products_flops(shape), result_bytes(hidden, weight))

    def of_ids(loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Variant:
        return variant(lambda h, w: loss(h, w, ids))

    makers: Makers = {
        "three products": lambda: Variant(products(hidden, weight), None, flops=products_flops(shape)),
        "eager": lambda: variant(mean(eager.linear_log_softmax)),
        "torch.compile": lambda: variant(mean(eager.compiled(eager.linear_log_softmax))),
        "liger": lambda: of_ids(peers.liger_linear_ce(device)),
        "apple cce": lambda: _cce(device, of_ids),
        "quack": lambda: of_ids(peers.quack_linear_ce(device)),
    }
    for name, b in faces(device).items():
        face = lambda h, w, b=b: uk.linear_ce(h, w, ids, row_weight=row_weight, backend=b)[0]  # noqa: E731
        makers[name] = lambda f=face: variant(f, own=True)  # type: ignore[misc]
    variants, absent = collect(makers)
    return Work(variants, absent, avoided_bytes=float(shape.rows * shape.vocab * hidden.element_size()))


def _cce(device: Device, of_ids: Callable[..., Variant]) -> Variant:
    loss = peers.apple_cce(device)
    return of_ids(lambda h, w, i: loss(h, w, i).mean())
