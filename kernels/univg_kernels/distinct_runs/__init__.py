"""The door of `distinct_runs`: how much a text repeats itself, in time linear in the text."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._dispatch import Backend, face


def distinct_runs(
    texts: Sequence[str], n: int, *, unanswered: Sequence[bool] | None = None, backend: Backend = "auto"
) -> Tensor:
    """How many different runs of `n` words each text has, and how many in all; words are what `str.split` gives.

    The C++ face tells runs apart by hashes of 64 bits.

    Args:
        texts: B strings. n: words of a run, 1 or more.
        unanswered: of each text, whether the answer is left out (default: of none): its last "<answer>" and what
            follows; without one, all of it.
    Returns: [B, 2] int64 on the CPU; (0, 0) for a text of fewer than n words.
    Raises: ValueError for n below 1, or another number of flags than texts.
    """
    if n < 1:
        raise ValueError(f"distinct_runs: n must be 1 or more words, got {n}")
    flags = [False] * len(texts) if unanswered is None else unanswered
    if len(flags) != len(texts):
        raise ValueError(
            f"distinct_runs: unanswered must have one entry for each of {len(texts)} texts, got {len(flags)}"
        )
    return face("distinct_runs", torch.device("cpu"), backend).distinct_runs(texts, n, flags)
