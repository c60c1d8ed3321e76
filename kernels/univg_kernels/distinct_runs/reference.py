"""Different runs of words and all of them: the specification."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def distinct_runs(texts: Iterable[str], n: int) -> Tensor:
    counts = []
    for text in texts:
        words = text.split()
        runs = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        counts.append((len(set(runs)), len(runs)))
    return torch.tensor(counts, dtype=torch.int64).view(-1, 2)
