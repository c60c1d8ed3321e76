"""The door of `distinct_runs`: how much a text repeats itself, in time linear in the text."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from .._dispatch import Backend, face


def distinct_runs(texts: Iterable[str], n: int, *, backend: Backend = "auto") -> Tensor:
    """How many different runs of `n` words each text has, and how many in all; words are what `str.split` gives.

    The C++ face tells runs apart by hashes of 64 bits.

    Args:
        texts: B strings, which may be made as they are asked for. n: words of a run, 1 or more.
    Returns: [B, 2] int64 on the CPU; (0, 0) for a text of fewer than n words.
    Raises: ValueError for n below 1.
    """
    if n < 1:
        raise ValueError(f"distinct_runs: n must be 1 or more words, got {n}")
    return face("distinct_runs", torch.device("cpu"), backend).distinct_runs(texts, n)
