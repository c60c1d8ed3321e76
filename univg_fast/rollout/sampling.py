"""How a token is drawn. One uniform number per token, fixed by (seed, uid, sample index, position).

A completion therefore does not depend on which other prompts share its batch, nor on the number of ranks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Sampling:
    """`temperature` 0 is greedy. `top_k` 0 and `top_p` 1 are off."""

    max_new_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ValueError(
                "sampling: expected max_new_tokens >= 1, temperature >= 0, top_k >= 0 and 0 < top_p <= 1, got "
                f"{self.max_new_tokens}, {self.temperature}, {self.top_k}, {self.top_p}"
            )


def uniforms(seed: int, uids: Sequence[str], num_generations: int, length: int) -> torch.Tensor:
    """[len(uids) * num_generations, length] float32 in [0, 1)."""
    rows = []
    for uid in uids:
        for j in range(num_generations):
            digest = hashlib.blake2b(f"{seed}/{uid}/{j}".encode(), digest_size=16).digest()
            rows.append(np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little"))).random(length))
    below_one = np.nextafter(np.float32(1), np.float32(0))  # rounding to float32 can give 1
    numbers = np.minimum(np.asarray(rows, np.float32), below_one)
    return torch.from_numpy(numbers.reshape(len(uids) * num_generations, length))


def keep_top(logits: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
    """Logits [B, V] with everything outside the top-k and the nucleus set to -inf, as transformers' warpers do."""
    if top_k and top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], float("-inf"))
    if top_p < 1:
        values, order = logits.sort(descending=True)
        probs = values.softmax(-1)
        drop = probs.cumsum(-1) - probs > top_p
        logits = logits.masked_fill(drop.scatter(-1, order, drop), float("-inf"))
    return logits


def draw(logits: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """One token per row of logits [B, V] by inverting the distribution function at uniform [B]."""
    cdf = logits.softmax(-1, dtype=torch.float64 if logits.device.type == "cpu" else torch.float32).cumsum(-1)
    # Strictly below the total, so that rounding can neither run past the end nor land on a banned last token.
    point = uniform[:, None].to(cdf) * cdf[:, -1:]
    return (cdf <= point).sum(-1).clamp(max=logits.shape[-1] - 1)
