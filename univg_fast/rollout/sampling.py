"""How a token is drawn. One uniform number per token, fixed by (seed, uid, repeat, sample index, position).

A completion therefore does not depend on which other prompts share its batch, nor on the number of ranks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = 128  # tokens whose probabilities `draw` adds up before it looks at single ones; divides the Qwen vocabularies


@dataclass(frozen=True)
class Sampling:
    """`temperature` 0 is greedy. `top_k` 0 and `top_p` 1 are off.

    A completion ends with the end-of-turn token, or with the token whose text completes one of the strings `stop`.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ValueError(
                "sampling: expected max_new_tokens >= 1, temperature >= 0, top_k >= 0 and 0 < top_p <= 1, got "
                f"{self.max_new_tokens}, {self.temperature}, {self.top_k}, {self.top_p}"
            )
        if isinstance(self.stop, str) or "" in self.stop:
            raise ValueError(f"sampling.stop: expected a tuple of strings that are not empty, got {self.stop!r}")

    @property
    def bytes_per_logit(self) -> int:
        """Memory of `choose` at its height, for each row and each token of the vocabulary.

        Logits in bfloat16 or float32, those in float32, their exponentials and these padded: 16. Top-k adds one more;
        top-p a sort's values and indices (twice on a GPU, for its own use), their sum and what it drops.
        """
        return 16 + 4 * (self.top_k > 0) + 28 * (self.top_p < 1)


def uniforms(seed: int, uids: Sequence[str], repeats: Sequence[int], num_generations: int, length: int) -> Tensor:
    """[len(uids) * num_generations, length] float64 in [0, 1): other numbers for each repeat of a uid."""
    rows = []
    for uid, repeat in zip(uids, repeats, strict=True):
        again = f"#{repeat}" if repeat else ""
        for j in range(num_generations):
            digest = hashlib.blake2b(f"{seed}/{uid}/{j}{again}".encode(), digest_size=16).digest()
            rows.append(np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little"))).random(length))
    return torch.from_numpy(np.asarray(rows).reshape(len(uids) * num_generations, length))


def choose(logits: Tensor, uniform: Tensor, sampling: Sampling, banned: Tensor) -> tuple[Tensor, Tensor]:
    """One token per row of logits [B, V] (which are overwritten), and its log-prob in float32.

    The log-prob is that of the sampling temperature before bans, top-k and top-p, as the loss computes it. `banned`:
    ids that are never chosen. Asks the device for nothing, so that a CUDA graph can hold it.
    """
    scaled = logits.float().div_(sampling.temperature or 1.0)
    total = scaled.logsumexp(-1)
    scaled.index_fill_(-1, banned, float("-inf"))
    if sampling.temperature == 0:
        token = scaled.argmax(-1)
    else:
        token = draw(keep_top(scaled, sampling.top_k, sampling.top_p), uniform)
    return token, scaled.gather(-1, token[:, None])[:, 0] - total


def keep_top(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Logits [B, V] with everything outside the top-k and the nucleus set to -inf, as transformers' warpers do."""
    if top_k and top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], float("-inf"))
    if top_p < 1:
        values, order = logits.sort()  # summed from the small end, where float32 is precise
        drop = values.softmax(-1).cumsum(-1) <= 1 - top_p
        drop[:, -1:].fill_(False)
        logits = logits.masked_fill(drop.scatter(-1, order, drop), float("-inf"))
    return logits


def draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """One token per row of logits [B, V] by inverting the distribution function at uniform [B], float64.

    First the block of tokens, then the token in it: the distribution function over all V is never made.
    """
    weights = (logits - logits.amax(-1, keepdim=True)).exp_()
    weights = F.pad(weights, (0, -logits.shape[-1] % BLOCK)) if logits.shape[-1] % BLOCK else weights
    blocks = weights.view(len(weights), -1, BLOCK)
    block, rest = _invert(blocks.sum(-1).double(), uniform)
    inside = blocks.gather(1, block[:, None, None].expand(-1, 1, BLOCK))[:, 0].double()
    return block * BLOCK + _invert(inside, rest)[0]


def _invert(weights: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row of weights [B, n]: the entry whose share of [0, 1) `uniform` falls into, and where within it.

    An entry of weight 0 has no share: the distribution function there does not exceed its predecessor's.
    """
    reached = weights.cumsum(-1)
    point = uniform * reached[:, -1]
    index = (reached <= point[:, None]).sum(-1)
    width, end = (x.gather(-1, index[:, None])[:, 0] for x in (weights, reached))
    return index, (1 - (end - point) / width).clamp(0, 1 - 2**-50)  # rounding must not run past the end
