"""What the rows of a response share: sums over it, made by the one program that has the response."""

from __future__ import annotations

import triton
import triton.language as tl

from .row_program import VESPO_LOWEST, bounded_importance, clip, known_rows

BLOCK: tl.constexpr = tl.constexpr(256)  # rows looked at in one step


@triton.jit
def load_rows(start, end, logp, entropy, rows):
    """(numbers of a block of rows, which of them exist, which count, logp, entropy). The others may hold anything,
    even NaN, and are not read."""
    n = start + tl.arange(0, BLOCK)
    inside = n < end
    keep = inside
    if rows.mask is not None:
        keep = inside & (tl.load(rows.mask + n, mask=inside, other=0) != 0)
    lp = tl.load(logp + n, mask=keep, other=0.0).to(tl.float32)
    h = tl.zeros_like(lp)
    if entropy is not None:
        h = tl.load(entropy + n, mask=keep, other=0.0).to(tl.float32)
    return n, inside, keep, lp, h


@triton.jit
def known_response(response, begin, end, logp, entropy, advantage_all, rows, s, BRANCHES: tl.constexpr):
    """fp32 scalars: (rows that count, mean log-ratio, importance ratio if it is of the response, else 1,
    importance of the geometric mean of gmpo, mean of sampling - lp, logarithm of vespo's ratio, gmpo's mean log-ratio,
    rows that are in it).
    """
    IMPORTANCE: tl.constexpr = BRANCHES.importance
    BY_ROW: tl.constexpr = (
        IMPORTANCE == "token_given" or IMPORTANCE == "token_truncate" or IMPORTANCE == "token_mask"
    )  # fmt: skip
    zeros = tl.zeros([BLOCK], tl.float32)
    count, differences, samplings, drifts = zeros, zeros, zeros, zeros
    logarithms, bounded, one_sided, highs = zeros, zeros, zeros, zeros
    if BRANCHES.coupled or BRANCHES.token_mean:
        for start in range(begin, end, BLOCK):
            n, _, keep, lp, h = load_rows(start, end, logp, entropy, rows)
            count += keep.to(tl.float32)
            if BRANCHES.coupled:
                advantage, difference, _, importance, sampling_difference, drift, high = known_rows(
                    n, keep, lp, h, advantage_all, rows, s, BRANCHES
                )
                differences += difference
                samplings += sampling_difference
                drifts += drift
                bounded += clip(difference, -20.0, 20.0)
                if BY_ROW:
                    log_importance = tl.log(importance)
                    if BRANCHES.loss_type == "vespo":
                        log_importance = clip(log_importance, VESPO_LOWEST, 20.0)
                    logarithms += tl.where(keep, log_importance, 0.0)
                up = tl.where(difference > s.epsilon_high, s.epsilon_high, difference)
                down = tl.where(difference < -s.epsilon_low, -s.epsilon_low, difference)
                one_sided += tl.where(advantage > 0, up, down) * high
                highs += tl.where(keep, high, 0.0)
    length = tl.sum(count, axis=0)
    size = tl.maximum(length, 1.0)
    importance = tl.full([], 1.0, tl.float32)
    if IMPORTANCE == "sequence_given":
        importance = tl.load(rows.importance_ratio + response)
    if IMPORTANCE == "sequence_truncate" or IMPORTANCE == "sequence_mask":
        log_importance = tl.sum(samplings, axis=0)
        if BRANCHES.importance_mean:
            log_importance /= size
        importance = bounded_importance(log_importance, s, BRANCHES)
    log_sum = tl.sum(logarithms, axis=0)
    geometric = importance
    if BY_ROW:
        geometric = tl.exp(log_sum / size)
    elif IMPORTANCE != "none":
        log_sum = clip(tl.log(importance), VESPO_LOWEST, 20.0)
    vespo_log_weight = clip(tl.sum(bounded, axis=0) + log_sum, VESPO_LOWEST, 20.0)
    gmpo_rows = tl.sum(highs, axis=0)
    gmpo_mean = tl.sum(one_sided, axis=0) / tl.maximum(gmpo_rows, 1.0)
    mean, drift = tl.sum(differences, axis=0) / size, tl.sum(drifts, axis=0) / size
    return length, mean, importance, geometric, drift, vespo_log_weight, gmpo_mean, gmpo_rows
