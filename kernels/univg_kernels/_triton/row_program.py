"""The row program: log-probability of a row -> its loss, its gradient and its metrics, scalars or blocks of rows.

The loss table lives here, one branch for each loss type and each KL estimator; the heads that make log-probabilities
know nothing of it. Slopes are those that autograd gives the specification, policy_loss/{table,reference}.py. What is
compared is written so that NaN goes into both the loss and the gradient.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .responses import scalar

VESPO_LOWEST: tl.constexpr = tl.constexpr(-18.420680743952367)  # ln 1e-8


@triton.jit
def clip(x, low, high):
    """x within [low, high]; NaN stays."""
    return tl.where(x < low, low, tl.where(x > high, high, x))


@triton.jit
def policy_term(lp, ratio, advantage, vespo_log_weight, gmpo_mean, s, BRANCHES: tl.constexpr):
    """(value, slope by the log-ratio, slope by lp) of the policy term. gmpo: the first is the slope by its mean."""
    LOSS_TYPE: tl.constexpr = BRANCHES.loss_type
    zero = tl.zeros_like(lp)
    if LOSS_TYPE == "cispo":
        weight = -clip(ratio, s.clip_low, s.clip_high) * advantage
        return weight * lp, zero, weight
    elif LOSS_TYPE == "sapo":
        tau = tl.where(advantage > 0, s.sapo_temperature_pos, s.sapo_temperature_neg)
        sigmoid = 1 / (1 + tl.exp(tau * (1 - ratio)))
        return -4 / tau * sigmoid * advantage, -4 * sigmoid * (1 - sigmoid) * ratio * advantage, zero
    elif LOSS_TYPE == "vespo":
        k = tl.where(advantage >= 0, s.vespo_k_pos, s.vespo_k_neg)
        decay = tl.where(advantage >= 0, s.vespo_lambda_pos, s.vespo_lambda_neg)
        weight = -tl.exp(decay + k * vespo_log_weight - decay * tl.exp(vespo_log_weight)) * advantage
        return weight * lp, zero, weight
    elif LOSS_TYPE == "gmpo":
        value = -tl.exp(gmpo_mean) * advantage
        return value, value, zero
    elif LOSS_TYPE == "reinforce":
        return -advantage * lp, zero, -advantage
    else:
        tl.static_assert(
            LOSS_TYPE == "grpo" or LOSS_TYPE == "bnpo" or LOSS_TYPE == "dr_grpo" or LOSS_TYPE == "dapo"
            or LOSS_TYPE == "luspo", "unknown loss type",
        )  # fmt: skip
        # -min(min(ratio, delta)·A, clip(ratio)·A); bounds belong to the side that moves.
        free = tl.where(ratio > s.delta, s.delta, ratio) * advantage
        clipped = clip(ratio, s.clip_low, s.clip_high) * advantage
        stopped = tl.where(free <= clipped, ratio > s.delta, (ratio < s.clip_low) | (ratio > s.clip_high))
        return -tl.where(free <= clipped, free, clipped), tl.where(stopped, 0.0, -ratio * advantage), zero


@triton.jit
def exp_minus_1_minus(d):
    """exp(d) - 1 - d; a series near 0, where the difference would cancel."""
    series = d * d * (0.5 + d * (1 / 6 + d * (1 / 24 + d * (1 / 120 + d * (1 / 720 + d * (1 / 5040))))))
    return tl.where(tl.abs(d) < 0.25, series, tl.exp(d) - 1.0 - d)


@triton.jit
def kl_term(lp, ref, BRANCHES: tl.constexpr):
    """(value, slope by lp) of the KL estimator."""
    KL: tl.constexpr = BRANCHES.kl
    tl.static_assert(
        KL == "none" or KL == "k1" or KL == "k2" or KL == "k3" or KL == "k1+" or KL == "k3+", "unknown estimator"
    )
    d = ref - lp
    value = tl.zeros_like(lp)
    slope = value
    if KL == "k1" or KL == "k1+":
        value = -d
        slope = value * 0 + 1
    if KL == "k2":
        value = 0.5 * d * d
    if KL == "k3" or KL == "k3+":
        if BRANCHES.k3_clamp:
            whole = exp_minus_1_minus(clip(d, -20.0, 20.0))
            value = clip(whole, -10.0, 10.0)
            slope = tl.where((tl.abs(d) > 20) | (tl.abs(whole) > 10), 0.0, -(whole + d))
        else:
            value = exp_minus_1_minus(d)
            slope = -(value + d)
    if KL == "k2" or KL == "k1+" or KL == "k3+":
        slope = -d
    return value, slope


@triton.jit
def clipped_flags(difference, ratio, advantage, s, BRANCHES: tl.constexpr):
    """Where the clip took effect: (below with A < 0, above with A > 0), 0 or 1."""
    seen = ratio
    if BRANCHES.loss_type == "gmpo":
        seen = tl.exp(difference)
    elif BRANCHES.loss_type != "cispo":
        seen = tl.where(ratio > s.delta, s.delta, ratio)
    low = ((seen < s.clip_low) & (advantage < 0)).to(tl.float32)
    return low, ((seen > s.clip_high) & (advantage > 0)).to(tl.float32)


@triton.jit
def loss_row(lp, difference, log_ratio, ref, advantage, phi, weight, importance, gate, vespo_log_weight, gmpo_mean, s,
             BRANCHES: tl.constexpr):  # fmt: skip
    """L_t = weight·(phi·gate·policy + beta·kl). log_ratio: at its level; difference: logp - old_logp of the row.

    Returns (loss, a = dL_t/dlp of the row itself, slope by what the response shares, kl, ratio, clipped low, high).
    Shared are the mean of the log-ratio (level "sequence") and that of gmpo.
    """
    outside = (log_ratio < s.log_ratio_min) | (log_ratio > s.log_ratio_max)
    ratio = tl.exp(clip(log_ratio, s.log_ratio_min, s.log_ratio_max))
    value, by_ratio, a = policy_term(lp, ratio, advantage, vespo_log_weight, gmpo_mean, s, BRANCHES)
    value = tl.where(gate != 0, phi * gate * value, 0.0)
    a = tl.where(gate != 0, phi * gate * a, 0.0)
    shared = tl.where(gate != 0, phi * gate * by_ratio, 0.0)
    if BRANCHES.loss_type != "gmpo":
        shared = tl.where(outside, 0.0, shared)
    kl, kl_slope = kl_term(lp, ref, BRANCHES)
    kl_by_ratio = tl.zeros_like(lp)
    if BRANCHES.kl != "none":
        factor = tl.zeros_like(lp) + s.beta
        if BRANCHES.kl_times_importance:
            factor *= importance
        if BRANCHES.kl_times_ratio:
            factor *= ratio
            kl_by_ratio = tl.where(outside, 0.0, factor * kl)
        value += factor * kl
        a += factor * kl_slope
    if BRANCHES.level == "sequence":
        shared += kl_by_ratio
    elif BRANCHES.loss_type == "gmpo":
        a += kl_by_ratio
    else:
        a += shared + kl_by_ratio
    a = tl.where(value != value, value, a)  # what lost its loss must not look like a row without a gradient
    low, high = clipped_flags(difference, ratio, advantage, s, BRANCHES)
    return weight * value, weight * a, weight * shared, kl, ratio, low, high


@triton.jit
def known_rows(n, keep, lp, entropy, advantage, rows, s, BRANCHES: tl.constexpr):
    """What rows n know before they look at their response, where `keep`; other rows are not read.

    Returns (advantage, difference, ref, importance ratio if it is of the row, else 1, old - sampling, sampling - lp,
    1 or 0 where the entropy mask drops the row).
    """
    zero = tl.zeros_like(lp)
    advantage += zero
    if rows.token_advantages is not None:
        advantage = tl.load(rows.token_advantages + n, mask=keep, other=0.0)
    old = lp
    if rows.old_logp is not None:
        old = tl.load(rows.old_logp + n, mask=keep, other=0.0)
    ref = lp
    if rows.ref_logp is not None:
        ref = tl.load(rows.ref_logp + n, mask=keep, other=0.0)
    sampling_difference, drift = zero, old - lp
    if rows.sampling_logp is not None:
        sampling = tl.load(rows.sampling_logp + n, mask=keep, other=0.0)
        sampling_difference = old - sampling
        sampling_difference = tl.where(sampling_difference == sampling_difference, sampling_difference, 0.0)
        drift = sampling - lp
    importance = zero + 1
    if BRANCHES.importance == "token_given":
        importance = tl.load(rows.token_importance_ratio + n, mask=keep, other=1.0)
    if BRANCHES.importance == "token_truncate" or BRANCHES.importance == "token_mask":
        importance = bounded_importance(sampling_difference, s, BRANCHES)
    high = zero + 1
    if BRANCHES.entropy_mask:
        high = (entropy >= scalar(rows.entropy_threshold, s.entropy_threshold)).to(tl.float32)
    return advantage, lp - old, ref, importance, sampling_difference, tl.where(drift == drift, drift, 0.0), high


@triton.jit
def bounded_importance(log_importance, s, BRANCHES: tl.constexpr):
    """exp, cut to its bounds or 0 outside of them."""
    low, high = s.importance_sampling_clip_min, s.importance_sampling_clip_max
    ratio = tl.exp(log_importance)
    if BRANCHES.importance == "token_mask" or BRANCHES.importance == "sequence_mask":
        return tl.where((ratio >= low) & (ratio <= high), ratio, 0.0)
    else:
        return clip(ratio, low, high)
