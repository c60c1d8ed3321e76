"""The loss table: every policy loss and every KL estimator, once, with formula, gradient and source.

docs/losses.md is made of it; `csrc/row_program.h` and `_triton/row_program.py` have one branch for each entry.
rho: ratio exp(log-ratio) at its level; sg: no gradient through it; lp: logp; n_i: rows of response i that count.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import GrpoConfig


@dataclass(frozen=True)
class RowState:
    """What the losses are functions of; [N], 0 in rows that do not count."""

    logp: Tensor
    difference: Tensor  # logp - old_logp
    ratio: Tensor  # at the level of the config, its logarithm bounded
    advantage: Tensor
    importance: Tensor  # the sampler's correction, detached; 1 where there is none
    importance_log_sum: Tensor  # of its response
    high_entropy: Tensor  # 1, or 0 where top_entropy_quantile drops the row
    total: Callable[[Tensor], Tensor]  # sum over the response, given to each of its rows


@dataclass(frozen=True)
class Entry:
    value: Callable[[RowState, GrpoConfig], Tensor]
    formula: str
    gradient: str  # by lp of the row; of a ratio of the whole response spread as in the document's head
    source: str


def clipped_surrogate(s: RowState, c: GrpoConfig) -> Tensor:
    free = s.ratio if c.delta is None else s.ratio.clamp(max=c.delta)
    clipped = s.ratio.clamp(*c.clip_bounds)
    return -torch.minimum(free * s.advantage, clipped * s.advantage)


def cispo(s: RowState, c: GrpoConfig) -> Tensor:
    return -s.ratio.detach().clamp(*c.clip_bounds) * s.advantage * s.logp


def _by_sign(good: Tensor, like: Tensor, positive: float, negative: float) -> Tensor:
    """Not torch.where of two numbers: that is fp32, whatever the rows are."""
    return torch.full_like(like, negative).masked_fill(good, positive)


def sapo(s: RowState, c: GrpoConfig) -> Tensor:
    tau = _by_sign(s.advantage > 0, s.advantage, c.sapo_temperature_pos, c.sapo_temperature_neg)
    return -4 / tau * torch.sigmoid(tau * (s.ratio - 1)) * s.advantage


VESPO_LOWEST = math.log(1e-8)


def vespo(s: RowState, c: GrpoConfig) -> Tensor:
    log_w = (s.total(s.difference.detach().clamp(-20, 20)) + s.importance_log_sum).clamp(VESPO_LOWEST, 20)
    good = s.advantage >= 0
    k = _by_sign(good, s.advantage, c.vespo_k_pos, c.vespo_k_neg)
    lam = _by_sign(good, s.advantage, c.vespo_lambda_pos, c.vespo_lambda_neg)
    return -torch.exp(lam + k * log_w - lam * log_w.exp()) * s.advantage * s.logp


def gmpo(s: RowState, c: GrpoConfig) -> Tensor:
    within = s.difference.clamp(-c.epsilon_low, c.epsilon_high)
    up, down = torch.minimum(s.difference, within), torch.maximum(s.difference, within)
    one_sided = torch.where(s.advantage > 0, up, down) * s.high_entropy
    mean = s.total(one_sided) / s.total(s.high_entropy).clamp(min=1)
    return -mean.exp() * s.advantage


def reinforce(s: RowState, c: GrpoConfig) -> Tensor:
    return -s.advantage * s.logp


_CLIP = "-min(min(rho, delta)·A, clip(rho, 1 - epsilon_low, 1 + epsilon_high)·A)"
_CLIP_SLOPE = "-rho·A where the smaller side is not at its bound, else 0"
LOSSES: dict[str, Entry] = {
    "grpo": Entry(clipped_surrogate, _CLIP, _CLIP_SLOPE, "DeepSeekMath, arXiv 2402.03300; sequence: GSPO, 2507.18071"),
    "bnpo": Entry(clipped_surrogate, _CLIP, _CLIP_SLOPE, "TRL's mean over the tokens of the batch"),
    "dr_grpo": Entry(clipped_surrogate, _CLIP, _CLIP_SLOPE, "Dr. GRPO, arXiv 2503.20783"),
    "dapo": Entry(clipped_surrogate, _CLIP, _CLIP_SLOPE, "DAPO, arXiv 2503.14476"),
    "luspo": Entry(clipped_surrogate, _CLIP, _CLIP_SLOPE, "LUSPO, arXiv 2602.05261, as in TRL 1.16"),
    "cispo": Entry(
        cispo,
        "-sg(min(rho, epsilon_high))·A·lp; cispo_two_sided: -sg(clip(rho, 1 - epsilon_low, 1 + epsilon_high))·A·lp",
        "-min(rho, epsilon_high)·A; cispo_two_sided: -clip(rho, …)·A",
        "MiniMax-M1, arXiv 2506.13585; one-sided as in TRL, two-sided as in verl",
    ),
    "sapo": Entry(
        sapo,
        "-(4/tau)·s·A, s = sigmoid(tau·(rho - 1)), tau = sapo_temperature_pos where A > 0, else _neg",
        "-4·s·(1 - s)·rho·A",
        "SAPO, arXiv 2511.20347",
    ),
    "vespo": Entry(
        vespo,
        "-sg(exp(lambda + k·log w - lambda·w))·A·lp, log w = sum over the response of clip(lp - old, ±20) and of the "
        "log importance ratios, within [ln 1e-8, 20]; k, lambda by the sign of A",
        "-exp(lambda + k·log w - lambda·w)·A",
        "VESPO, arXiv 2602.10693, as in TRL 1.16",
    ),
    "gmpo": Entry(
        gmpo,
        "-exp(mean over the response of the log-ratio, clipped to [-epsilon_low, epsilon_high] on the side that A "
        "pushes to)·A",
        "-exp(mean)·A/n_i where the row's log-ratio is not clipped, summed over the response",
        "GMPO, arXiv 2507.20673",
    ),
    "reinforce": Entry(reinforce, "-A·lp", "-A", "REINFORCE; GPG, arXiv 2504.02546 (verl's gpg)"),
}


@dataclass(frozen=True)
class KLEntry:
    value: Callable[[Tensor, Tensor, GrpoConfig], Tensor]  # of (lp, ref)
    formula: str
    gradient: str


def k1(lp: Tensor, ref: Tensor, c: GrpoConfig) -> Tensor:
    return lp - ref


def k2(lp: Tensor, ref: Tensor, c: GrpoConfig) -> Tensor:
    return (lp - ref).square() / 2


def k3(lp: Tensor, ref: Tensor, c: GrpoConfig) -> Tensor:
    d = ref - lp
    if not c.k3_clamp:
        return d.exp() - d - 1
    d = d.clamp(-20, 20)
    return (d.exp() - d - 1).clamp(-10, 10)


def _straight_through(value: Callable[[Tensor, Tensor, GrpoConfig], Tensor]) -> Callable[..., Tensor]:
    """The value of one estimator, the gradient of k2."""

    def both(lp: Tensor, ref: Tensor, c: GrpoConfig) -> Tensor:
        slope = k2(lp, ref, c)
        return slope - slope.detach() + value(lp, ref, c).detach()

    return both


KLS: dict[str, KLEntry] = {
    "k1": KLEntry(k1, "lp - ref", "1"),
    "k2": KLEntry(k2, "(lp - ref)²/2", "lp - ref"),
    "k3": KLEntry(k3, "exp(d) - d - 1, d = ref - lp; k3_clamp: d within ±20, the value within ±10", "1 - exp(d)"),
    "k1+": KLEntry(_straight_through(k1), "lp - ref", "lp - ref (straight through)"),
    "k3+": KLEntry(_straight_through(k3), "as k3", "lp - ref (straight through)"),
}
