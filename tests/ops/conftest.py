"""Cases and tolerances that the op tests share, as fixtures (tests are no package)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

SLACK = {torch.float32: 1e-6, torch.bfloat16: 1e-4, torch.float16: 1e-4, torch.float64: 1e-12}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@dataclass(frozen=True)
class Case:
    """Inputs of every policy loss, in one dtype. `rows` holds the keyword arguments that they share."""

    logits: Tensor  # [N, V]
    hidden: Tensor  # [N, H]
    weight: Tensor  # [V, H]
    bias: Tensor  # [V]
    token_ids: Tensor  # [N]
    cu_seqlens: Tensor
    rows: dict[str, Any]

    def to(self, dtype: torch.dtype) -> Case:
        """Heads in another dtype; the row factors stay, as a trainer has them in fp32 whatever the model is in."""
        heads = {k: getattr(self, k).to(dtype) for k in ("logits", "hidden", "weight", "bias")}
        return replace(self, **heads)

    def arguments(self, op: str) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
        """(fresh differentiable inputs, the other keyword arguments) of a policy loss."""

        def fresh(*names: str) -> tuple[Tensor, ...]:
            return tuple(getattr(self, name).detach().clone().requires_grad_() for name in names)

        shared = dict(cu_seqlens=self.cu_seqlens, **self.rows)
        if op == "grpo_loss":
            return fresh("logits"), dict(token_ids=self.token_ids, inplace=False, **shared)
        if op == "linear_grpo_loss":
            return fresh("hidden", "weight", "bias"), dict(token_ids=self.token_ids, **shared)
        log_p = torch.log_softmax(self.logits.double(), -1)
        logp = log_p.gather(1, self.token_ids.long()[:, None])[:, 0].to(self.logits.dtype)
        entropy = -(log_p.exp() * log_p).sum(-1).to(self.logits.dtype)
        return (logp.requires_grad_(),), dict(entropy=entropy, **shared)


def offsets(lengths: Sequence[int], dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.tensor([0, *lengths], dtype=dtype).cumsum(0).to(dtype)


def _make_case(
    seed: int = 0,
    lengths: Sequence[int] = (3, 0, 5, 1, 4, 2),
    groups: Sequence[int] = (3, 1, 2),
    vocab: int = 50,
    width: int = 8,
    *,
    masked: bool = True,
    old: bool = True,
    ref: bool = True,
    given: bool = False,
    equal_rewards: bool = False,
    temperature: float = 1.0,
) -> Case:
    """A random case in fp64. Log-ratios keep 0.07 away from those of the clip bounds 0.8 and 1.2: rounding
    flips none."""
    g = torch.Generator().manual_seed(seed)
    n, b = sum(lengths), len(lengths)

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=g, dtype=torch.float64)

    hidden, weight, bias = rand(n, width) * 2 - 1, rand(vocab, width) * 2 - 1, rand(vocab) - 0.5
    # Exact in half precision, so that all dtypes see one problem.
    hidden, weight, bias = (torch.round(t * 64) / 64 for t in (hidden, weight, bias))
    logits = hidden @ weight.T + bias
    token_ids = torch.randint(0, vocab, (n,), generator=g)
    logp = torch.log_softmax(logits / temperature, -1).gather(1, token_ids[:, None])[:, 0]
    steps = torch.tensor([-0.6, -0.3, -0.08, 0.0, 0.08, 0.3, 0.6], dtype=torch.float64)
    rewards = torch.full((b,), 0.7, dtype=torch.float64) if equal_rewards else rand(b) * 2
    rows: dict[str, Any] = {}
    if given:
        rows |= {"advantages": rand(b) * 4 - 2, "phi": rand(b) * 3 - 1}
    else:
        rows |= {"rewards": rewards, "accuracy": rand(b), "cu_groups": offsets(groups)}
    if old:
        rows["old_logp"] = logp + steps[torch.randint(0, len(steps), (n,), generator=g)]
    if ref:
        rows["ref_logp"] = logp + rand(n) - 0.5
    if masked:
        rows["mask"] = rand(n) > 0.25
    return Case(logits, hidden, weight, bias, token_ids, offsets(lengths), rows)


@pytest.fixture(scope="session")
def make_case() -> Callable[..., Case]:
    return _make_case


@pytest.fixture(scope="session")
def assert_no_worse() -> Callable[[str, Tensor, Tensor, Tensor, torch.dtype], None]:
    """error(face) <= 2 · error(eager in the same dtype) + slack · scale, both against fp64.

    The scale is the largest true value, but at least 0.1: what is 0 by cancellation is not 0 by representation.
    """

    def check(what: str, got: Tensor, eager: Tensor, truth: Tensor, dtype: torch.dtype) -> None:
        assert got.shape == truth.shape, what
        if not truth.numel():
            return
        truth = truth.double()
        error = (got.double() - truth).abs().max()
        bound = 2 * (eager.double() - truth).abs().max() + SLACK[dtype] * truth.abs().max().clamp(min=0.1)
        assert error <= bound, f"{what} in {dtype}: error {error:.3e}, allowed {bound:.3e}"

    return check
