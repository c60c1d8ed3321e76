"""One batch with every hard case in it, padded as codebases hold it, and the comparison with ours on its flat rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import univg_kernels as uk
from torch import Tensor

# Rows that each response has; response 2 is empty. The rest of the [6, 6] tensors is padding.
LENGTHS = (6, 4, 0, 3, 5, 4)


@dataclass(frozen=True)
class Problem:
    """[B, L] fp64, random in the padding too. `mask` (0 or 1) leaves out rows within responses as well."""

    logp: Tensor
    entropy: Tensor
    old: Tensor
    ref: Tensor
    sampling: Tensor
    mask: Tensor
    advantages: Tensor  # [B]; of response 3: 0
    token_advantages: Tensor  # [B, L]
    lengths: tuple[int, ...] = LENGTHS

    @property
    def present(self) -> Tensor:
        return torch.arange(self.mask.shape[1]) < torch.tensor(self.lengths)[:, None]

    def flat(self, x: Tensor) -> Tensor:
        return x[self.present]


def make_problem(seed: int = 0, far: float = 21.0) -> Problem:
    """Log-ratios of 24 and of -23, reference differences of `far` and -24, one unknown sampling_logp (NaN)."""
    g = torch.Generator().manual_seed(seed)
    shape = (len(LENGTHS), max(LENGTHS))

    def around(width: float) -> Tensor:
        return (torch.rand(shape, generator=g, dtype=torch.float64) * 2 - 1) * width

    logp = -0.2 - around(1.0).abs() * 3
    old, ref = logp - around(0.7), logp + around(1.5)
    advantages = torch.tensor([1.3, -0.7, 0.9, 0.0, -1.1, 0.4], dtype=torch.float64)
    old[4, 1], old[5, 2], old[1, 0] = logp[4, 1] - 24, logp[5, 2] + 23, logp[1, 0] - 4
    old[1, 1] = logp[1, 1] + 0.6  # clipped from below
    ref[1, 3], ref[0, 2], ref[4, 4] = logp[1, 3] + far, logp[0, 2] - 24, logp[4, 4] + 2.9
    sampling = old + around(0.8)
    sampling[0, 1] = torch.nan
    mask = torch.arange(shape[1]) < torch.tensor(LENGTHS)[:, None]
    mask[0, 3] = mask[4, 0] = False
    # Entropies that fp32 holds: codebases take the quantile in fp32.
    entropy = (around(1.0).abs() * 2).float().double()
    return Problem(logp, entropy, old, ref, sampling, mask.long(), advantages, around(1.5) + advantages[:, None])


def hard_cases(far: float = 21.0) -> dict[str, Problem]:
    full = make_problem(1, far)
    return {
        "nothing counts": replace(full, mask=torch.zeros_like(full.mask)),
        "no advantage": replace(full, advantages=torch.zeros_like(full.advantages)),
        "on policy": replace(full, old=full.logp, sampling=full.logp + full.sampling - full.old),
    }


def without_empty(problem: Problem) -> Problem:
    some = [i for i, n in enumerate(problem.lengths) if n]
    parts = {f.name: getattr(problem, f.name)[some] for f in fields(problem) if f.name != "lengths"}
    return Problem(**parts, lengths=tuple(problem.lengths[i] for i in some))


Loss = Callable[[Tensor, Tensor], Tensor]


def assert_like(
    problem: Problem,
    config: uk.GrpoConfig,
    theirs: Loss,
    rows: dict[str, Any],
    *,
    rtol: float = 1e-9,
    atol: float = 1e-10,
    constant: float = 0.0,
) -> None:
    """theirs(logp, entropy) on the padded batch equals ours on its rows: value and both gradients.

    rows: arguments of policy_loss besides old_logp and mask. constant: what theirs adds to the value alone.
    """
    lp, h = problem.logp.clone().requires_grad_(), problem.entropy.clone().requires_grad_()
    loss = theirs(lp, h)
    grads = torch.autograd.grad(loss, (lp, h), allow_unused=True, materialize_grads=True)
    for grad in grads:
        assert not grad[~problem.present].any(), "the codebase differentiates padding"
    ours = tuple(problem.flat(x).clone().requires_grad_() for x in (problem.logp, problem.entropy))
    given = {"old_logp": problem.flat(problem.old), "mask": problem.flat(problem.mask).bool()} | rows
    cu = torch.tensor((0, *problem.lengths)).cumsum(0)
    out = uk.policy_loss(ours[0], cu, entropy=ours[1], config=config, backend="reference", **given)
    got = torch.autograd.grad(out.loss, ours, allow_unused=True, materialize_grads=True)
    expected = (loss.detach() - constant, *(problem.flat(grad) for grad in grads))
    for what, a, b in zip(
        ("loss", "d loss/d logp", "d loss/d entropy"), (out.loss.detach(), *got), expected, strict=True
    ):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol, msg=lambda m, w=what: f"{w} of {config}\n{m}")
