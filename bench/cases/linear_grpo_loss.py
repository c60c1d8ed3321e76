"""`linear_grpo_loss`: hidden states in, the loss and both gradients for the price of three products."""

from __future__ import annotations

from collections.abc import Callable

import torch
import univg_kernels as uk
from torch import Tensor

from .. import eager, peers
from ..device import Device
from ..problem import Rows, faces, head_logp, make_head, make_ids, make_rows
from ..shapes import Shape, Shapes
from ..work import Case, Inputs, Judge, Makers, Outcome, Prepare, Variant, Work, collect

CONFIG = uk.GrpoConfig(beta=0.0)


def cases(shapes: Shapes) -> list[Case]:
    targets, others = shapes["linear_grpo_loss"], shapes["linear_peers"]
    out = [Case("linear_grpo_loss", d, s, "target", build_target, share=14) for s in targets for d in s.dtypes]
    return out + [Case("linear_grpo_loss", d, s, "peers", build_peers, share=3) for s in others for d in s.dtypes]


def products(hidden: Tensor, weight: Tensor, frozen: bool = False) -> Prepare:
    """The matrix products that no head can do without; nothing is kept."""

    def run() -> Outcome:
        z = hidden @ weight.t()
        z @ weight
        if not frozen:
            z.t() @ hidden
        return {}

    return lambda: run


def products_flops(shape: Shape, count: float = 3) -> float:
    return count * 2.0 * shape.rows * shape.vocab * shape.width


def result_bytes(*gradients_of: Tensor) -> float:
    return float(sum(t.numel() * t.element_size() for t in gradients_of))


def _univg(rows: Rows, backend: uk.Backend) -> Callable[[Tensor, Tensor], Outcome]:
    def call(h: Tensor, w: Tensor) -> Outcome:
        out = uk.linear_grpo_loss(h, w, rows.token_ids, **rows.policy, config=CONFIG, backend=backend)
        return {"loss": out.loss}

    return call


def _eager(rows: Rows, logp: Callable[..., Tensor] = eager.linear_log_softmax) -> Callable[[Tensor, Tensor], Outcome]:
    return lambda h, w: {"loss": eager.policy(logp(h, w, rows.token_ids), rows, CONFIG)}


def build_target(shape: Shape, dtype: torch.dtype, device: Device) -> Work:
    """Against the bare products: dense, with half of the rows inactive, and with a frozen head."""
    hidden, weight = make_head(shape, dtype, device)
    ids = make_ids(shape, device)
    logp = head_logp(hidden, weight, ids)
    dense, half = (make_rows(shape, device, ids, logp, active) for active in (1.0, 0.5))
    inputs = Inputs({"hidden": hidden, "weight": weight})
    (name, backend), *_ = faces(device).items()
    dense_judge = inputs.judge(_eager(dense))

    def own(rows: Rows, judge: Judge, count: float, frozen: tuple[str, ...] = ()) -> Variant:
        run = inputs.prepared(_univg(rows, backend), frozen=frozen)
        kept = result_bytes(hidden) if frozen else result_bytes(hidden, weight)
        return Variant(run, judge, own=True, flops=products_flops(shape, count), result_bytes=kept)

    variants = {
        "three products": Variant(products(hidden, weight), None, flops=products_flops(shape)),
        "two products": Variant(products(hidden, weight, True), None, flops=products_flops(shape, 2)),
        name: own(dense, dense_judge, 3),
        f"{name}, half active": own(half, inputs.judge(_eager(half)), 2),
        f"{name}, frozen head": own(dense, dense_judge, 2, frozen=("weight",)),
    }
    return Work(variants, avoided_bytes=float(shape.rows * shape.vocab * hidden.element_size()))


def build_peers(shape: Shape, dtype: torch.dtype, device: Device) -> Work:
    hidden, weight = make_head(shape, dtype, device)
    ids = make_ids(shape, device)
    rows = make_rows(shape, device, ids, head_logp(hidden, weight, ids))
    inputs = Inputs({"hidden": hidden, "weight": weight})
    judge = inputs.judge(_eager(rows))

    def variant(function: Callable[[Tensor, Tensor], Outcome], own: bool = False) -> Variant:
        return Variant(inputs.prepared(function), judge, own, products_flops(shape), result_bytes(hidden, weight))

    def liger() -> Variant:
        loss = peers.liger_chunked_loss(rows)
        return variant(lambda h, w: {"loss": loss(h, w)})

    def cce() -> Variant:
        loss = peers.apple_cce(device)
        return variant(_eager(rows, lambda h, w, i: -loss(h, w, i)))

    def trl() -> Variant:
        logp = peers.trl_chunked()
        return variant(_eager(rows, lambda h, w, i: logp(h, w, i)[0]))

    makers: Makers = {
        "three products": lambda: Variant(products(hidden, weight), None, flops=products_flops(shape)),
        "eager": lambda: variant(_eager(rows)),
        "torch.compile": lambda: variant(_eager(rows, eager.compiled(eager.linear_log_softmax))),
        "liger chunked": liger,
        "trl chunked": trl,
        "apple cce": cce,
    }
    for name, b in faces(device).items():
        makers[name] = lambda b=b: variant(_univg(rows, b), own=True)  # type: ignore[misc]
    variants, absent = collect(makers)
    return Work(variants, absent, avoided_bytes=float(shape.rows * shape.vocab * hidden.element_size()))
