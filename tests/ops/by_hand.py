"""The loss table as kernels.md and the docstrings say it, once more: token by token, in scalars.

Shares no line with the package and looks at none of its tables. What is differentiated is a scalar tensor, all else is
a Python float. A `Tensor` leaves a bound without its gradient, so clips are choices here, not functions.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from univg_kernels import GrpoConfig

Scalar = Any  # float or scalar Tensor


def number(x: Scalar) -> float:
    return x.item() if isinstance(x, Tensor) else float(x)


def exp(x: Scalar) -> Scalar:
    return x.exp() if isinstance(x, Tensor) else math.exp(x) if x < 709 else math.inf


def clip(x: Scalar, low: float, high: float) -> Scalar:
    return low if number(x) < low else high if number(x) > high else x


METRICS = ["num_tokens", "kl_sum", "entropy_sum", "clip_low_sum", "clip_high_sum", "ratio_sum", "sampling_ratio_sum"]
METRICS += ["dropped_sum", "ratio_max", "logp_diff_max", "sampling_ratio_max", "sampling_logp_diff_max"]


class Token:
    """A row that counts: what the caller gave for it, and what its response makes of it."""

    def __init__(self, t: int, i: int, lp: Tensor, h: Tensor, rows: dict[str, Any]):
        self.t, self.i, self.lp, self.h = t, i, lp, h

        def at(name: str, index: int, otherwise: float) -> float:
            return otherwise if rows.get(name) is None else float(rows[name][index])

        self.a = at("token_advantages", t, at("advantages", i, math.nan))
        self.phi = at("phi", i, 1.0)
        self.old = at("old_logp", t, number(lp))
        self.ref = at("ref_logp", t, math.nan)
        self.sampling = at("sampling_logp", t, self.old)
        self.lr = lp - self.old
        self.unknown = math.isnan(self.sampling)
        self.shift = 0.0 if self.unknown else self.old - self.sampling
        self.given = at("token_importance_ratio", t, at("importance_ratio", i, math.nan))
        self.given_once = rows.get("importance_ratio") is not None  # for the whole response
        self.high = True  # entropy
        self.w = 1.0  # importance ratio


def mean(values: list[Scalar]) -> Scalar:
    return sum(values) / len(values)


def loss_by_hand(
    logp: list[Tensor], entropy: list[Tensor], cu: list[int], rows: dict[str, Any], c: GrpoConfig
) -> tuple[Tensor, dict[str, float]]:
    """(loss, metrics by name) of the arguments of `policy_loss`; advantages must be given."""
    responses = [
        [
            Token(t, i, logp[t], entropy[t], rows)
            for t in range(cu[i], cu[i + 1])
            if rows.get("mask") is None or bool(rows["mask"][t])
        ]
        for i in range(len(cu) - 1)
    ]
    everything = [k for response in responses for k in response]
    mark_high_entropy(everything, rows, c)
    metrics = dict.fromkeys(METRICS, 0.0)
    total, bonus = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for response in filter(None, responses):
        weigh(response, rows, c)
        share = row_share(response, responses, rows, c)
        for k in response:
            value, ratio, kl, dropped = token_loss(k, response, c, "ref_logp" in rows)
            total = total + share * value
            if k.high:
                counted = sum(x.high for x in everything)
                bonus = bonus + k.h * (share if c.entropy_aggregation == "loss" else 1 / counted)
            count(metrics, k, c, number(ratio), number(kl), dropped)
    return total - c.entropy_coef * bonus, metrics


def mark_high_entropy(everything: list[Token], rows: dict[str, Any], c: GrpoConfig) -> None:
    threshold = rows.get("entropy_threshold")
    if threshold is None and c.top_entropy_quantile < 1 and everything:
        order = sorted(number(k.h) for k in everything)
        place = (1 - c.top_entropy_quantile) * (len(order) - 1)
        below, above = order[math.floor(place)], order[math.ceil(place)]
        threshold = below + (above - below) * (place - math.floor(place))
    for k in everything:
        k.high = threshold is None or number(k.h) >= float(threshold)


def weigh(response: list[Token], rows: dict[str, Any], c: GrpoConfig) -> None:
    """The importance ratios of one response."""
    mode = c.importance_sampling_mode
    for k in response:
        if not math.isnan(k.given):
            k.w = k.given
        elif rows.get("sampling_logp") is not None and mode != "none":
            exponent = k.shift
            if mode in ("sequence_truncate", "sequence_mask"):
                exponent = sum(x.shift for x in response)
                if c.importance_sampling_aggregation == "mean":
                    exponent /= len(response)
            k.w = exp(exponent)
            low, high = c.importance_sampling_clip_min, c.importance_sampling_clip_max
            if mode in ("token_truncate", "sequence_truncate"):
                k.w = clip(k.w, low, high)
            elif not low <= k.w <= high:
                k.w = 0.0


def row_share(response: list[Token], responses: list[list[Token]], rows: dict[str, Any], c: GrpoConfig) -> float:
    """What the value of each row of a response is multiplied by."""
    how = (
        c.loss_aggregation
        or {
            **dict.fromkeys(("grpo", "sapo", "gmpo"), "seq-mean-token-mean"),
            **dict.fromkeys(("bnpo", "dapo", "cispo", "vespo", "reinforce"), "token-mean"),
            "dr_grpo": "seq-mean-token-sum-norm",
            "luspo": "seq-mean-token-sum",
        }[c.loss_type]
    )
    if rows.get("denominator") is not None:
        share = 1 / float(rows["denominator"])
    elif how == "token-mean":
        share = 1 / sum(len(r) for r in responses)
    else:
        share = 1 / sum(bool(r) or c.count_empty_responses for r in responses)
    if how == "seq-mean-token-mean":
        share /= len(response)
    if how == "seq-mean-token-sum-norm":
        share /= c.max_completion_length or 0
    return share


def token_loss(k: Token, response: list[Token], c: GrpoConfig, reference: bool) -> tuple[Scalar, Scalar, Scalar, bool]:
    """(value of the row, its ratio, its KL before any weight, whether a mask dropped the policy term)."""
    log_ratio = k.lr
    if c.importance_sampling_level != "token":
        log_ratio = mean([x.lr for x in response])
    if c.importance_sampling_level == "sequence_token":
        log_ratio = k.lp - number(k.lp) + number(log_ratio)
    ratio = exp(clip(log_ratio, c.log_ratio_min, c.log_ratio_max))

    gate = k.w if c.loss_type not in ("vespo", "gmpo") else 1.0
    if c.loss_type == "gmpo":
        gate = 0.0 if any(x.w == 0 for x in response) else exp(mean([math.log(x.w) for x in response]))
    elif not k.high:
        gate = 0.0
    if c.off_policy_mask_threshold is not None and k.a < 0:
        drift = mean([0.0 if x.unknown else x.sampling - number(x.lp) for x in response])
        if drift > c.off_policy_mask_threshold:
            gate = 0.0
    value = k.phi * gate * policy(k, response, ratio, c) if gate != 0 else 0.0

    kl: Scalar = 0.0
    if reference and c.beta:
        kl = divergence(k.lp, k.ref, c)
        corrected = kl * ratio if c.use_bias_correction_kl else kl
        value = value + c.beta * corrected * (k.w if c.importance_sampling_on_kl else 1.0)
    return value, ratio, kl, gate == 0


def policy(k: Token, response: list[Token], ratio: Scalar, c: GrpoConfig) -> Scalar:
    low, high = 1 - c.epsilon_low, 1 + c.epsilon_high
    if c.loss_type == "reinforce":
        return -k.a * k.lp
    if c.loss_type == "cispo":
        bound = clip(number(ratio), low, high) if c.cispo_two_sided else min(number(ratio), c.epsilon_high)
        return -bound * k.a * k.lp
    if c.loss_type == "sapo":
        tau = c.sapo_temperature_pos if k.a > 0 else c.sapo_temperature_neg
        return -4 / tau / (1 + exp(-tau * (ratio - 1))) * k.a
    if c.loss_type == "vespo":
        log_w = sum(clip(number(x.lr), -20, 20) for x in response)
        logs = [clip(math.log(x.w) if x.w else -math.inf, math.log(1e-8), 20) for x in response]
        made_once = math.isnan(k.given) and c.importance_sampling_mode in ("sequence_truncate", "sequence_mask")
        log_w = clip(log_w + (logs[0] if made_once or k.given_once else sum(logs)), math.log(1e-8), 20)
        power, rate = (c.vespo_k_pos, c.vespo_lambda_pos) if k.a >= 0 else (c.vespo_k_neg, c.vespo_lambda_neg)
        return -exp(rate + power * log_w - rate * math.exp(log_w)) * k.a * k.lp
    if c.loss_type == "gmpo":
        kept = [x for x in response if x.high]
        clipped = [
            clip(x.lr, -math.inf, c.epsilon_high) if x.a > 0 else clip(x.lr, -c.epsilon_low, math.inf) for x in kept
        ]
        return -exp(mean(clipped) if kept else 0.0) * k.a
    free = ratio if c.delta is None else clip(ratio, -math.inf, c.delta)
    bounded = clip(ratio, low, high)
    return -k.a * (free if number(free) * k.a <= number(bounded) * k.a else bounded)


def divergence(lp: Tensor, ref: float, c: GrpoConfig) -> Scalar:
    kind = c.kl_estimator.rstrip("+")
    if kind == "k1":
        value: Scalar = lp - ref
    elif kind == "k2":
        value = 0.5 * (lp - ref) ** 2
    else:
        d = clip(ref - lp, -20, 20) if c.k3_clamp else ref - lp
        value = exp(d) - d - 1
        value = clip(value, -10, 10) if c.k3_clamp else value
    if c.kl_estimator.endswith("+"):
        slope = number(lp) - ref  # of k2
        value = number(value) + slope * (lp - number(lp))
    return value


def count(m: dict[str, float], k: Token, c: GrpoConfig, ratio: float, kl: float, dropped: bool) -> None:
    difference = number(k.lr)
    unsampled = 0.0 if k.unknown else k.old - k.sampling
    low, high = 1 - c.epsilon_low, 1 + c.epsilon_high
    below, above = ratio < low and k.a < 0, min(ratio, c.delta or math.inf) > high and k.a > 0
    if c.loss_type in ("sapo", "vespo", "reinforce"):
        below = above = False
    if c.loss_type == "cispo":
        below = below and c.cispo_two_sided
        above = k.a > 0 and ratio > (high if c.cispo_two_sided else c.epsilon_high)
    if c.loss_type == "gmpo":
        below, above = k.a < 0 and difference < -c.epsilon_low, k.a > 0 and difference > c.epsilon_high
    added = dict(num_tokens=1, kl_sum=kl, entropy_sum=number(k.h), clip_low_sum=below, clip_high_sum=above)
    added |= dict(ratio_sum=ratio, sampling_ratio_sum=k.w, dropped_sum=dropped)
    largest = dict(ratio_max=ratio, sampling_ratio_max=k.w, logp_diff_max=abs(difference))
    largest |= dict(sampling_logp_diff_max=abs(unsampled))
    for name, value in added.items():
        m[name] += value
    for name, value in largest.items():
        m[name] = max(m[name], value)
