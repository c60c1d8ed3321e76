"""How logits become probabilities: p = softmax(x), x = cap·tanh(z·scale/cap), or z·scale without a cap."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ._checks import check_positive
from .config import GrpoConfig, check_whole


class SoftmaxSpec(NamedTuple):
    """scale = logit_scale/temperature; cap = softcap/temperature, 0 for none; vocab_size: columns that exist, or all.

    dL/dz = scale·(1 - (x/cap)²)·dL/dx
    """

    scale: float
    cap: float
    vocab_size: int | None


def softmax_spec(config: GrpoConfig) -> SoftmaxSpec:
    cap = 0.0 if config.softcap is None else config.softcap / config.temperature
    return SoftmaxSpec(config.logit_scale / config.temperature, cap, config.vocab_size)


def check_softmax(
    op: str, temperature: float, logit_scale: float, softcap: float | None, vocab_size: int | None
) -> SoftmaxSpec:
    temperature = check_positive(op, "temperature", temperature)
    cap = 0.0 if softcap is None else check_positive(op, "softcap", softcap) / temperature
    return SoftmaxSpec(check_positive(op, "logit_scale", logit_scale) / temperature, cap, vocab_size)


def check_vocab(op: str, vocab_size: int | None, columns: int) -> int:
    """The number of columns that exist."""
    check_whole(op, "vocab_size", vocab_size)
    if vocab_size is not None and vocab_size > columns:
        raise ValueError(f"{op}: vocab_size must be at most {columns} (the columns there are), got {vocab_size}")
    return columns if vocab_size is None else vocab_size


def separate_rows(logits: Tensor) -> Tensor:
    """Logits as the heads want them: columns contiguous, rows apart. A copy only where they are not."""
    n, v = logits.shape
    fits = (v == 1 or logits.stride(1) == 1) and (n <= 1 or logits.stride(0) >= v)
    return logits if fits else logits.contiguous()
