"""C++ face of `linear_logprob`: torch's products around the C++ head of `selective_logprob`."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _library
from .._linear_forward import Statistics, forward_in_chunks, forward_in_strips
from .._linear_head import Head
from .._linear_losses import LinearLogprob, LogprobKernels
from .._linear_sweeps import skipping_on_host
from .._softmax import SoftmaxSpec
from ..selective_logprob import cpp_impl as _fakes  # noqa: F401  (torch.compile asks for them)

_library.load()
ops = torch.ops.univg_kernels


def forward_on_host(head: Head, ids: Tensor, scale: float, cap: float, mask: Tensor | None = None) -> Statistics:
    """torch.compile, which would unroll the strips and cannot skip rows, makes whole rows."""

    def logprob(z: Tensor, ids: Tensor, mask: Tensor | None) -> Statistics:
        return ops.logprob(z, ids, scale, cap, mask)

    return (forward_in_chunks if torch.compiler.is_compiling() else forward_in_strips)(head, ids, mask, logprob)


KERNELS = LogprobKernels(forward_on_host, ops.logprob_backward_, lambda hidden: skipping_on_host())


def linear_logprob(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, token_ids: Tensor, softmax: SoftmaxSpec
) -> tuple[Tensor, Tensor]:
    return LinearLogprob.apply(hidden, weight, bias, token_ids.long(), softmax, KERNELS)
