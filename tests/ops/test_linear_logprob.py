"""`linear_logprob`: upstream gradients for each row, and products by strips of the vocabulary."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import univg_kernels as uk
from ops import linear_cases
from ops.linear_cases import SEVERAL, STRIP, make
from torch import Tensor

small_chunks = linear_cases.small_chunks


def logprob_call(case, backend: str, **options: Any) -> tuple[tuple[Tensor, ...], tuple[Tensor, Tensor]]:
    inputs = tuple(t.clone().requires_grad_() for t in (case.hidden, case.weight, case.bias))
    named = dict(zip(("hidden", "weight", "bias"), inputs, strict=True))
    return inputs, uk.linear_logprob(**named, token_ids=case.token_ids, backend=backend, **options)


@pytest.mark.parametrize("options", [{}, dict(temperature=0.7, softcap=1.5, logit_scale=0.8, vocab_size=37)], ids=str)
def test_logprob_per_row_upstream_gradients(make_case, options: dict[str, Any]) -> None:
    case = make(make_case, 17, **SEVERAL)
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(52, generator=g, dtype=torch.float64) for _ in range(2))
    a[::3], b[::3], b[1::3] = 0.0, 0.0, 0.0  # inactive, both, the first only
    results = []
    for backend in ("cpp", "reference"):
        inputs, (logp, entropy) = logprob_call(case, backend, **options)
        grads = torch.autograd.grad((a * logp + b * entropy).sum(), inputs)
        results.append([logp.detach(), entropy.detach(), *grads])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


def test_logprob_backward_may_be_repeated_but_not_differentiated(make_case) -> None:
    inputs, (logp, entropy) = logprob_call(make(make_case, 18, **SEVERAL), "cpp")
    loss = logp.sum() - 0.5 * entropy.sum()
    first = torch.autograd.grad(loss, inputs, retain_graph=True)
    second = torch.autograd.grad(loss * 3.0, inputs, retain_graph=True)
    torch.testing.assert_close([g * 3 for g in first], list(second))
    factor = torch.ones((), dtype=torch.float64, requires_grad=True)
    (once,) = torch.autograd.grad(loss * factor, inputs[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        once.sum().backward()


def test_strips_whose_logits_are_minus_infinity(make_case) -> None:
    """Tokens that a bias forbids: a whole strip of the vocabulary, and the token of one row in it; then every token."""
    case = make(make_case, 22, **SEVERAL)
    case.token_ids.clamp_(min=STRIP)
    case.token_ids[5] = 3
    case.bias[:STRIP] = -torch.inf
    allowed = torch.arange(len(case.token_ids)) != 5
    (got, got_entropy), (want, want_entropy) = (
        uk.linear_logprob(case.hidden, case.weight, case.token_ids, bias=case.bias, backend=backend)
        for backend in ("cpp", "reference")
    )
    assert float(got[5]) == -torch.inf
    torch.testing.assert_close(got[allowed], want[allowed], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(got_entropy, want_entropy, rtol=1e-10, atol=1e-10)
    logp, entropy = uk.linear_logprob(
        case.hidden, case.weight, case.token_ids, bias=torch.full_like(case.bias, -torch.inf), backend="cpp"
    )
    assert bool(logp.isnan().all()) and bool(entropy.isnan().all())


def test_far_apart_strips_keep_their_digits(make_case) -> None:
    """A strip that holds next to nothing of the probability, and the token."""
    case = make(make_case, 23, **SEVERAL).to(torch.float32)
    case.token_ids.fill_(1)
    case.bias[:STRIP] -= 3000.0
    named = dict(bias=case.bias.double(), backend="reference")
    want, _ = uk.linear_logprob(case.hidden.double(), case.weight.double(), case.token_ids, **named)
    got, entropy = uk.linear_logprob(case.hidden, case.weight, case.token_ids, bias=case.bias, backend="cpp")
    torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=0)
    assert bool(entropy.isfinite().all())
