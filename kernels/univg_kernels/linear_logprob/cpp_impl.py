"""C++ face of `linear_logprob`: torch's products around the C++ head of `selective_logprob`."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _library
from .._linear_losses import LinearLogprob, LogprobKernels
from .._linear_sweeps import skipping_on_host
from .._softmax import SoftmaxSpec
from ..selective_logprob import cpp_impl as _fakes  # noqa: F401  (torch.compile asks for them)

_library.load()
ops = torch.ops.univg_kernels
KERNELS = LogprobKernels(ops.logprob, ops.logprob_backward_, lambda hidden: skipping_on_host())


def linear_logprob(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, token_ids: Tensor, softmax: SoftmaxSpec
) -> tuple[Tensor, Tensor]:
    return LinearLogprob.apply(hidden, weight, bias, token_ids.long(), softmax, KERNELS)
