"""`selective_logprob`: log-probabilities and entropies of logits, with gradients from upstream: 2 reads, 1 write."""

from __future__ import annotations

from collections.abc import Callable

import torch
import univg_kernels as uk
from torch import Tensor

from .. import eager, peers
from ..device import Device
from ..problem import faces, generator, make_ids, make_logits
from ..shapes import Shape, Shapes
from ..work import Case, Inputs, Makers, Outcome, Variant, Work, collect


def cases(shapes: Shapes) -> list[Case]:
    return [Case("selective_logprob", d, s, "", build) for s in shapes["selective_logprob"] for d in s.dtypes]


def upstream(shape: Shape, device: Device) -> dict[str, Tensor]:
    g = generator(device, 5)
    return {
        name: torch.empty(shape.rows, device=device.torch).normal_(generator=g) / shape.rows
        for name in ("logp", "entropy")
    }


def outputs(pair: tuple[Tensor, Tensor]) -> Outcome:
    return {"logp": pair[0], "entropy": pair[1]}


def build(shape: Shape, dtype: torch.dtype, device: Device) -> Work:
    source, ids = make_logits(shape, dtype, device), make_ids(shape, device)
    inputs, weights = Inputs({"logits": source}), upstream(shape, device)

    def call(function: eager.LogPEntropy) -> Callable[[Tensor], Outcome]:
        return lambda z: outputs(function(z, ids))

    judge = inputs.judge(call(eager.logp_entropy), upstream=weights)

    def variant(function: eager.LogPEntropy, own: bool = False) -> Variant:
        return Variant(inputs.prepared(call(function), upstream=weights), judge, own)

    makers: Makers = {
        "eager": lambda: variant(eager.logp_entropy),
        "torch.compile": lambda: variant(eager.compiled(eager.logp_entropy)),
        "trl": lambda: variant(peers.trl_selective_entropy()),
    }
    for name, b in faces(device).items():
        face = lambda z, i, b=b: uk.selective_logprob(z, i, backend=b)  # noqa: E731
        makers[name] = lambda f=face: variant(f, own=True)  # type: ignore[misc]
    variants, absent = collect(makers)
    size = float(source.numel() * source.element_size())
    return Work(variants, absent, floor_bytes=3 * size, avoided_bytes=size)
