"""Different runs of words and all of them: the specification."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def distinct_runs(texts: Sequence[str], n: int, unanswered: Sequence[bool]) -> Tensor:
    counts = []
    for text, cut in zip(texts, unanswered, strict=True):
        words = (text.rpartition("<answer>")[0] if cut else text).split()
        runs = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        counts.append((len(set(runs)), len(runs)))
    return torch.tensor(counts, dtype=torch.int64).view(-1, 2)
