"""C++ face of `distinct_runs`."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import torch
from torch import Tensor

from .. import _library
from .._texts import CHUNK, as_bytes

_library.load()


def distinct_runs(texts: Iterable[str], n: int) -> Tensor:
    parts, rest = [torch.zeros(0, 2, dtype=torch.int64)], iter(texts)
    while chunk := list(islice(rest, CHUNK)):
        _, text, offsets = as_bytes(chunk)
        parts.append(torch.ops.univg_kernels.distinct_runs(text, offsets, n))
    return torch.cat(parts)


@torch.library.register_fake("univg_kernels::distinct_runs")
def _(text: Tensor, offsets: Tensor, n: int) -> Tensor:
    return offsets.new_empty(offsets.shape[0] - 1, 2)
