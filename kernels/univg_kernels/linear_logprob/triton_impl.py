"""Triton face of `linear_logprob`: torch's products around the kernels of `selective_logprob`."""

from __future__ import annotations

from torch import Tensor

from .._linear_losses import LinearLogprob, LogprobKernels
from .._softmax import SoftmaxSpec
from .._triton.compact import skipping_on_device
from .._triton.launch import check_dtype
from ..selective_logprob.triton_impl import triton_logprob, triton_logprob_backward_

KERNELS = LogprobKernels(triton_logprob, triton_logprob_backward_, skipping_on_device)


def linear_logprob(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, token_ids: Tensor, softmax: SoftmaxSpec
) -> tuple[Tensor, Tensor]:
    check_dtype("linear_logprob", hidden)
    return LinearLogprob.apply(hidden, weight, bias, token_ids.contiguous(), softmax, KERNELS)
