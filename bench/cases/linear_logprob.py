"""`linear_logprob`: the contract of hosts that own their loss. The logits are made twice: four products."""

from __future__ import annotations

from collections.abc import Callable

import torch
import univg_kernels as uk
from torch import Tensor

from .. import eager, peers
from ..device import Device
from ..problem import faces, make_head, make_ids
from ..shapes import Shape, Shapes
from ..work import Case, Inputs, Makers, Outcome, Variant, Work, collect
from .linear_grpo_loss import products, products_flops, result_bytes
from .selective_logprob import outputs, upstream

LinearLogP = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def cases(shapes: Shapes) -> list[Case]:
    shape = shapes["linear_peers"][0]
    return [Case("linear_logprob", d, shape, "", build, share=3) for d in shape.dtypes]


def build(shape: Shape, dtype: torch.dtype, device: Device) -> Work:
    hidden, weight = make_head(shape, dtype, device)
    ids, weights = make_ids(shape, device), upstream(shape, device)
    inputs = Inputs({"hidden": hidden, "weight": weight})

    def call(function: LinearLogP) -> Callable[[Tensor, Tensor], Outcome]:
        return lambda h, w: outputs(function(h, w, ids))

    judge = inputs.judge(call(eager.linear_logp_entropy), upstream=weights)

    def variant(function: LinearLogP, own: bool = False) -> Variant:
        run = inputs.prepared(call(function), upstream=weights)
        return Variant(run, judge, own, products_flops(shape, 4), result_bytes(hidden, weight))

    makers: Makers = {
        "three products": lambda: Variant(products(hidden, weight), None, flops=products_flops(shape)),
        "eager": lambda: variant(eager.linear_logp_entropy),
        "torch.compile": lambda: variant(eager.compiled(eager.linear_logp_entropy)),
        "trl chunked": lambda: variant(peers.trl_chunked(("entropy",))),
        "liger scaled ce": lambda: variant(peers.liger_scaled_ce()),
    }
    for name, b in faces(device).items():
        face = lambda h, w, i, b=b: uk.linear_logprob(h, w, i, backend=b)  # noqa: E731
        makers[name] = lambda f=face: variant(f, own=True)  # type: ignore[misc]
    variants, absent = collect(makers)
    return Work(variants, absent, avoided_bytes=float(shape.rows * shape.vocab * hidden.element_size()))
