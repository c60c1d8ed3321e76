"""`grpo_loss`: logits in, loss and gradient in one pass. Memory bound: a row must be read once and written once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import univg_kernels as uk
from torch import Tensor

from .. import eager, peers
from ..device import Device
from ..problem import Rows, faces, logits_logp, make_ids, make_logits, make_rows
from ..shapes import Shape, Shapes
from ..work import Case, Inputs, Makers, Outcome, Prepare, Run, Variant, Work, collect

CONFIGS = {  # one for each road through the heads: clipped, weighted, smooth, and coupled over the response
    "": uk.GrpoConfig(beta=0.0),
    "cispo": uk.GrpoConfig(loss_type="cispo", epsilon_high=1.3, beta=0.0),
    "sapo": uk.GrpoConfig(loss_type="sapo", beta=0.0),
    "sequence": uk.GrpoConfig(importance_sampling_level="sequence", beta=0.0),
}


def cases(shapes: Shapes) -> list[Case]:
    first, *others = shapes["grpo_loss"]
    plain = partial(build, label="")
    out = [Case("grpo_loss", d, first, "", plain, share=2) for d in first.dtypes]
    quick = partial(build, compiled=False)  # each compilation takes as long as a case
    out += [Case("grpo_loss", "bf16", first, label, partial(quick, label=label)) for label in CONFIGS if label]
    return out + [Case("grpo_loss", d, s, "", partial(quick, label="")) for s in others for d in s.dtypes]


def build(shape: Shape, dtype: torch.dtype, device: Device, label: str, compiled: bool = True) -> Work:
    config = CONFIGS[label]
    source, ids = make_logits(shape, dtype, device), make_ids(shape, device)
    rows = make_rows(shape, device, ids, logits_logp(source, ids))
    inputs = Inputs({"logits": source}, overwritten=True)

    def from_logp(logp: eager.LogP) -> Callable[[Tensor], Outcome]:
        return lambda z: {"loss": eager.policy(logp(z, rows.token_ids), rows, config)}

    def univg(backend: uk.Backend) -> Callable[[Tensor], Outcome]:
        def call(z: Tensor) -> Outcome:
            out = uk.grpo_loss(z, rows.token_ids, **rows.policy, config=config, backend=backend)
            return {"loss": out.loss}

        return call

    judge = inputs.judge(from_logp(eager.log_softmax))

    def plain(function: Callable[[Tensor], Outcome]) -> Variant:
        return Variant(inputs.prepared(function), judge)

    makers: Makers = {
        "eager log_softmax": lambda: plain(from_logp(eager.log_softmax)),
        "eager logsumexp": lambda: plain(from_logp(eager.logsumexp)),
        "torch.compile": lambda: plain(from_logp(eager.compiled(eager.log_softmax))),
        "trl selective_log_softmax": lambda: plain(from_logp(peers.trl_selective())),
        "liger triton": lambda: Variant(_liger(source, rows, config, device), judge),
    }
    if not compiled:
        del makers["torch.compile"]
    alone = config.importance_sampling_level == "token"  # rows that the CUDA C++ face takes
    for name, backend in faces(device, cuda=alone).items():
        makers[name] = lambda b=backend: Variant(inputs.prepared(univg(b)), judge, own=True)  # type: ignore[misc]
    variants, absent = collect(makers)
    size = float(source.numel() * source.element_size())
    return Work(variants, absent, floor_bytes=2 * size, avoided_bytes=size)


def _liger(source: Tensor, rows: Rows, config: uk.GrpoConfig, device: Device) -> Prepare:
    """Liger wants [B, L+1, V] and ignores the last position of each response."""
    loss = peers.liger_triton_loss(device, config.loss_type, config.importance_sampling_level)

    def prepare() -> Run:
        padded = torch.nn.functional.pad(rows.padded(source), (0, 0, 0, 1)).requires_grad_()

        def run() -> Outcome:
            value = loss(padded.view_as(padded), rows, config.epsilon_high)
            (grad,) = torch.autograd.grad(value, [padded])
            return {"loss": value.detach(), "d_logits": grad[:, :-1]}

        return run

    return prepare
