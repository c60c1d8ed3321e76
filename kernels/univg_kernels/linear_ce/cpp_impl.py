"""C++ face of `linear_ce`: torch's products around the C++ row head."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _library
from .._autograd import scale_on_host
from .._linear_forward import Statistics
from .._linear_head import Head, Rows
from .._linear_losses import linear_cross_entropy
from .._linear_sweeps import skipping_on_host
from .._softmax import SoftmaxSpec
from ..linear_logprob.cpp_impl import forward_on_host

_library.load()
ops = torch.ops.univg_kernels


def linear_ce(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    token_ids: Tensor,
    row_weight: Tensor | float,
    softmax: SoftmaxSpec,
    weight_grad: Tensor | None,
) -> tuple[Tensor, Tensor]:
    ids, settings = token_ids.long(), (softmax.scale, softmax.cap)

    def forward(head: Head) -> Statistics:
        return forward_on_host(head, ids, *settings)

    def gradient_(z: Tensor, part: Rows, weights: Tensor) -> Tensor:
        return ops.ce_head_(z, ids[part], weights, *settings)[1]

    skipping = skipping_on_host()
    return linear_cross_entropy(
        hidden, weight, bias, row_weight, softmax.vocab_size, weight_grad, forward, gradient_, skipping, scale_on_host
    )


@torch.library.register_fake("univg_kernels::ce_head_")
def _(logits: Tensor, token_ids: Tensor, row_weight: Tensor, scale: float, cap: float) -> tuple[Tensor, Tensor, Tensor]:
    logp = torch.empty_like(row_weight)
    return row_weight.new_empty(()), logp, torch.empty_like(logp, dtype=torch.bool)
