"""Triton face of `linear_logprob`: torch's products around the kernels of `selective_logprob`."""

from __future__ import annotations

from torch import Tensor

from .._linear_forward import Statistics, forward_in_chunks
from .._linear_head import Head
from .._linear_losses import LinearLogprob, LogprobKernels
from .._softmax import SoftmaxSpec
from .._triton.compact import skipping_on_device
from .._triton.launch import check_dtype
from ..selective_logprob.triton_impl import triton_logprob, triton_logprob_backward_


def forward_on_device(head: Head, ids: Tensor, scale: float, cap: float, mask: Tensor | None = None) -> Statistics:
    def logprob(z: Tensor, ids: Tensor, mask: Tensor | None) -> Statistics:
        return triton_logprob(z, ids, scale, cap, None, mask)

    return forward_in_chunks(head, ids, mask, logprob)


KERNELS = LogprobKernels(forward_on_device, triton_logprob_backward_, skipping_on_device)


def linear_logprob(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, token_ids: Tensor, softmax: SoftmaxSpec
) -> tuple[Tensor, Tensor]:
    check_dtype("linear_logprob", hidden)
    return LinearLogprob.apply(hidden, weight, bias, token_ids.contiguous(), softmax, KERNELS)
