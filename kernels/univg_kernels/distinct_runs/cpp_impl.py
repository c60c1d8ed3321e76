"""C++ face of `distinct_runs`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _library
from .._texts import CHUNK, as_bytes

_library.load()


def distinct_runs(texts: Sequence[str], n: int, unanswered: Sequence[bool]) -> Tensor:
    cut, parts = torch.tensor(list(unanswered), dtype=torch.bool), [torch.zeros(0, 2, dtype=torch.int64)]
    for i in range(0, len(texts), CHUNK):
        _, text, offsets = as_bytes(texts[i : i + CHUNK])
        parts.append(torch.ops.univg_kernels.distinct_runs(text, offsets, cut[i : i + CHUNK], n))
    return torch.cat(parts)


@torch.library.register_fake("univg_kernels::distinct_runs")
def _(text: Tensor, offsets: Tensor, unanswered: Tensor, n: int) -> Tensor:
    return offsets.new_empty(unanswered.shape[0], 2)
