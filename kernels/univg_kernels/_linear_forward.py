"""log p(token), entropy and log-sum-exp of the rows of a linear head, where the logits are not needed again."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ._linear_head import Head, chunk_rows
from ._rows import math_dtype

Statistics = tuple[Tensor, Tensor, Tensor]
"""(logp [m], entropy [m], total [m] fp64), where total is the log-sum-exp, in the base that the face works in."""
Logprob = Callable[[Tensor, Tensor, Tensor | None], Statistics]
"""(logits, token ids, which rows count or None for all) -> Statistics; rows that do not count are unread, and 0."""

ROWS, STRIP = 2048, 2048  # of the logits that are made at once: a product as tall as helps, and no larger than a cache


def forward_in_chunks(head: Head, ids: Tensor, mask: Tensor | None, logprob: Logprob) -> Statistics:
    """Whole rows, some at a time."""
    n, size = head.hidden.shape[0], chunk_rows(head)
    out, buffer, start = _empty(head, n), head.buffer(size), 0
    while start < n:  # not range(): torch.compile would compile for one n
        part = slice(start, min(start + size, n))
        z = head.logits(buffer[: part.stop - start], part)
        for whole, x in zip(out, logprob(z, ids[part], None if mask is None else mask[part]), strict=True):
            whole[part] = x
        start = part.stop
    return out


def forward_in_strips(head: Head, ids: Tensor, mask: Tensor | None, logprob: Logprob) -> Statistics:
    """Strips of the vocabulary: the products are taller than those of whole rows in the same memory, and so faster
    (1280 rows of 151936 columns by 17 % on one AVX-512 thread). For natural logarithms, and who may wait for the values
    of `mask`: rows that do not count are not multiplied."""
    if mask is not None:
        rows, out = mask.nonzero()[:, 0], _empty(head, len(mask))
        for whole, x in zip(out, forward_in_strips(head.of(rows), ids[rows], None, logprob), strict=True):
            whole.zero_()[rows] = x
        return out
    n, out = head.hidden.shape[0], _empty(head, head.hidden.shape[0])
    buffer = head.hidden.new_empty(min(n, ROWS), min(STRIP, head.weight.shape[0]))
    for start in range(0, n, ROWS):
        part = slice(start, start + ROWS)
        for whole, x in zip(out, _strip_by_strip(head.of(part), ids[part], logprob, buffer), strict=True):
            whole[part] = x
    return out


def _strip_by_strip(head: Head, ids: Tensor, logprob: Logprob, buffer: Tensor) -> Statistics:
    found = []
    for first in range(0, head.weight.shape[0], STRIP):
        strip = head.columns(slice(first, first + STRIP))
        width = strip.weight.shape[0]
        z = strip.logits(buffer[: len(ids), :width], slice(None))
        found.append(logprob(z, (ids - first).clamp(0, width - 1), None))
    logp, entropy, total = (torch.stack(x) for x in zip(*found, strict=True))  # [strips, m]
    lse = total.logsumexp(0)
    log_share = total - lse  # of the probability, by strip; -inf where all logits of one are
    share = log_share.exp()
    own, nowhere = (ids // STRIP)[None], log_share == -torch.inf
    logp = torch.where(nowhere, -torch.inf, logp + log_share).gather(0, own)[0]
    return logp, torch.where(nowhere, 0.0, share * (entropy - log_share)).sum(0), lse


def _empty(head: Head, rows: int) -> Statistics:
    kinds = (math_dtype(head.hidden), math_dtype(head.hidden), torch.float64)
    logp, entropy, total = (head.hidden.new_empty(rows, dtype=kind) for kind in kinds)
    return logp, entropy, total
