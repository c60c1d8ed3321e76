"""C++ face of `difficulty_weight`."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _library

_library.load()


def difficulty_weight(miou: Tensor, kind: str, power: float, normalize: bool) -> Tensor:
    return torch.ops.univg_kernels.difficulty_weight(miou.contiguous(), kind, power, normalize)


@torch.library.register_fake("univg_kernels::difficulty_weight")
def _(miou: Tensor, kind: str, power: float, normalize: bool) -> Tensor:
    return torch.empty_like(miou)
