"""Rows of the linear heads that have no gradient, or hold what no row may hold; and no rows."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
import univg_kernels as uk
from ops import linear_cases
from ops.linear_cases import CONFIGS, HIDDEN, SEVERAL, SHAPES, SKIPPING, WEIGHT, make, outcome

skipping = linear_cases.skipping
small_chunks = linear_cases.small_chunks


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("name", ["rows", "responses", "batch"])
def test_no_rows(make_case, name: str, backend: str) -> None:
    case = make_case(seed=13, lengths=(0, 0), groups=(2,))
    loss, metrics, logp, *grads = outcome(case, CONFIGS[name], backend)
    assert float(loss.detach()) == 0.0 and logp.numel() == 0 and not bool(metrics.any())
    assert [g.shape for g in grads] == [(0, 8), (50, 8), (50,)] and not any(bool(g.any()) for g in grads)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_no_rows_for_the_other_heads(backend: str) -> None:
    hidden, weight = torch.zeros(0, 8, requires_grad=True), torch.randn(50, 8, requires_grad=True)
    ids, none = torch.zeros(0, dtype=torch.long), torch.zeros(0)
    loss, logp = uk.linear_ce(hidden, weight, ids, row_weight=none, backend=backend)
    lp, entropy = uk.linear_logprob(hidden, weight, ids, backend=backend)
    (loss + lp.sum() + entropy.sum()).backward()
    assert float(loss.detach()) == 0.0 and logp.shape == lp.shape == (0,)
    assert weight.grad is not None and not bool(weight.grad.any())


@pytest.mark.parametrize("name", ["rows", "responses", "batch"])
def test_all_rows_inactive(make_case, name: str) -> None:
    case = make_case(seed=14, **SEVERAL, ref=False)
    for off in ({"mask": torch.zeros(52, dtype=torch.bool)}, {"rewards": torch.ones(10, dtype=torch.float64)}):
        given = {**case.rows, **off}
        config = uk.GrpoConfig(**{**vars(CONFIGS[name]), "entropy_coef": 0.0})
        inputs = [t.clone().requires_grad_() for t in (case.hidden, case.weight, case.bias)]
        named = dict(zip(("hidden", "weight", "bias"), inputs, strict=True))
        out = uk.linear_grpo_loss(
            **named, token_ids=case.token_ids, cu_seqlens=case.cu_seqlens, config=config, backend="cpp", **given
        )
        for g in torch.autograd.grad(out.loss, inputs):
            assert not bool(g.any())


@pytest.mark.parametrize("skipping", SKIPPING, indirect=True)
@pytest.mark.parametrize("name", ["rows", "rows without a KL term", "responses", "batch"])
def test_hidden_states_of_rows_that_do_not_count_may_be_nan(make_case, skipping: str, name: str) -> None:
    """They touch no other row and no gradient: all comes out as if they held zeros."""
    results = []
    for hold in (torch.nan, 0.0):
        case = make(make_case, 15, **SEVERAL).to(torch.float32)
        case.rows["mask"][:20] = False  # no row of the first chunk
        case.hidden[~case.rows["mask"]] = hold
        results.append(outcome(case, CONFIGS[name], "cpp", bias=True))
        assert not bool(results[-1][HIDDEN][~case.rows["mask"]].any())
    for filled, empty in zip(*results, strict=True):
        assert bool(filled.isfinite().all()) and torch.equal(filled, empty)


@pytest.mark.parametrize("name", ["rows without a KL term", "responses", "responses, gmpo"])
def test_a_row_foreseen_without_a_gradient_that_has_one(make_case, monkeypatch, name: str) -> None:
    """Of rows whose advantage is 0 only the log-probabilities are made. But 0 · NaN is NaN, which is to reach the
    gradients as it does where nothing is foreseen."""
    case = make(make_case, 24, **SEVERAL, given=True, masked=False, ref=False)
    case.rows["advantages"][[0, 4, 5]] = 0.0
    case.rows["phi"][0] = torch.nan
    foreseen = outcome(case, CONFIGS[name], "cpp")
    kernels = import_module("univg_kernels.linear_grpo_loss.cpp_impl")._Kernels
    monkeypatch.setattr(kernels, "foresee", lambda self: (None, None))
    for got, want in zip(foreseen, outcome(case, CONFIGS[name], "cpp"), strict=True):
        torch.testing.assert_close(
            got, want, rtol=1e-6 if got.dtype == torch.float32 else 1e-10, atol=1e-10, equal_nan=True
        )
    assert bool(foreseen[HIDDEN][0].isnan().any()) and bool(foreseen[WEIGHT].isnan().any())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["rows without a KL term", "responses", "responses, gmpo"])
def test_rows_foreseen_without_a_gradient(make_case, name: str, shape: str) -> None:
    """Some responses, and some rows of others, among those that have one."""
    case = make(make_case, 25, **SHAPES[shape], given=True, ref=False)
    case.rows["advantages"][::2] = 0.0
    results = (outcome(case, CONFIGS[name], backend) for backend in ("cpp", "reference"))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6 if got.dtype == torch.float32 else 1e-10, atol=1e-10)
    del case.rows["advantages"]
    case.rows["token_advantages"] = torch.linspace(-1, 1, len(case.hidden), dtype=torch.float64)
    case.rows["token_advantages"][1::3] = 0.0
    results = (outcome(case, CONFIGS[name], backend) for backend in ("cpp", "reference"))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6 if got.dtype == torch.float32 else 1e-10, atol=1e-10)
