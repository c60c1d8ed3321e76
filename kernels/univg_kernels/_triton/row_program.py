"""The row program: log-probability of a row -> its loss, its gradient and its metrics, scalars or blocks of rows.

All loss variants live here; the heads that make log-probabilities know nothing of them. A loss type is one function and
one branch of `policy_term`.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def clipped_surrogate(ratio, advantage, epsilon_low, epsilon_high, delta):
    """-min(min(ratio, delta)·A, clip(ratio)·A) and its derivative by logp; bounds belong to the side that moves."""
    low, high = 1.0 - epsilon_low, 1.0 + epsilon_high
    free = tl.minimum(ratio, delta) * advantage
    clipped = tl.minimum(tl.maximum(ratio, low), high) * advantage
    moves = tl.where(free <= clipped, ratio <= delta, (ratio >= low) & (ratio <= high))
    return -tl.where(free <= clipped, free, clipped), tl.where(moves, -ratio * advantage, 0.0)


@triton.jit
def policy_term(ratio, advantage, epsilon_low, epsilon_high, delta, LOSS_TYPE: tl.constexpr):
    """(value, derivative by logp) of the policy term. The loss table."""
    tl.static_assert(LOSS_TYPE == "grpo", "unknown loss type")
    return clipped_surrogate(ratio, advantage, epsilon_low, epsilon_high, delta)


@triton.jit
def k3_term(logp, ref_logp):
    """(exp(d) - d - 1, its derivative by logp), d = ref - logp; a series near 0, where the difference would cancel."""
    d = ref_logp - logp
    series = d * d * (0.5 + d * (1 / 6 + d * (1 / 24 + d * (1 / 120 + d * (1 / 720 + d * (1 / 5040))))))
    value = tl.where(tl.abs(d) < 0.25, series, tl.exp(d) - 1.0 - d)
    return value, -(value + d)


@triton.jit
def policy_row(logp, difference, ref_logp, advantage, phi, weight, epsilon_low, epsilon_high, delta, beta,
               HAS_REF: tl.constexpr, LOSS_TYPE: tl.constexpr):  # fmt: skip
    """L_t = weight·(phi·policy + beta·k3), difference = logp - old_logp.

    Returns (loss, a = dL/dlogp, k3, ratio, clipped low, clipped high); the last two are 0 or 1.
    """
    ratio = tl.exp(difference)
    value, slope = policy_term(ratio, advantage, epsilon_low, epsilon_high, delta, LOSS_TYPE)
    value, slope = phi * value, phi * slope
    kl = tl.zeros_like(ratio)
    if HAS_REF:
        kl, kl_slope = k3_term(logp, ref_logp)
        value, slope = value + beta * kl, slope + beta * kl_slope
    seen = tl.minimum(ratio, delta)
    low = ((seen < 1.0 - epsilon_low) & (advantage < 0)).to(tl.float32)
    high = ((seen > 1.0 + epsilon_high) & (advantage > 0)).to(tl.float32)
    return weight * value, weight * slope, kl, ratio, low, high
