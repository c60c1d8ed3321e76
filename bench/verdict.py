"""Right or wrong, before any clock is started."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .work import Judge, Outcome, Variant, Work

SLACK = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 1e-4}
PEER = 10  # peers promise less: wrong is what is this many times beyond the bar of our own faces


@dataclass(frozen=True)
class Verdict:
    """error: the largest error over what is allowed, of all results; right where it is <= 1."""

    error: float
    problem: str = ""  # begins with "wrong" or "failed"

    @property
    def right(self) -> bool:
        return not self.problem


def prove(work: Work, dtype: torch.dtype) -> dict[str, Verdict]:
    """A verdict for each variant. |error| <= 2·|error of eager torch in this dtype| + slack, both against fp64, for the
    loss and every gradient; the slack is relative to the largest true value, but that is at least 0.1 for values."""
    known: dict[int, tuple[Outcome, Outcome]] = {}
    verdicts = {}
    for name, variant in work.variants.items():
        if variant.judge is None:
            verdicts[name] = Verdict(0.0)
            continue
        if id(variant.judge) not in known:
            known[id(variant.judge)] = _outcomes(variant.judge)
        verdicts[name] = _judge(variant, *known[id(variant.judge)], dtype)
    return verdicts


def _outcomes(judge: Judge) -> tuple[Outcome, Outcome]:
    return judge.truth()(), judge.eager()()


def _judge(variant: Variant, truth: Outcome, eager: Outcome, dtype: torch.dtype) -> Verdict:
    try:
        got = {k: v for k, v in variant.prepare()().items() if k in truth}
    except Exception as error:  # whatever a foreign package raises: said, and never timed
        return Verdict(float("nan"), failure(error))
    shares = {k: _share(k, got[k], eager[k], truth[k], dtype) / (1 if variant.own else PEER) for k in got}
    worst = max(shares, key=lambda k: (not shares[k] <= 1, shares[k]))
    wrong = f"wrong: {worst}: {shares[worst]:.1f} times the error allowed" if not shares[worst] <= 1 else ""
    return Verdict(shares[worst], wrong)


def failure(error: Exception) -> str:
    return f"failed: {type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:160]}"


def _share(name: str, got: Tensor, eager: Tensor, truth: Tensor, dtype: torch.dtype) -> float:
    got = got.reshape(truth.shape)  # a padded layout
    largest = truth.abs().max().double()
    scale = largest.clamp(min=1e-12 if name.startswith("d_") else 0.1)
    allowed = 2 * (eager.double() - truth).abs().max() + SLACK[dtype] * scale
    return float((got.double() - truth).abs().max() / allowed)
