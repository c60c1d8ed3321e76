"""The Triton softmax heads: log-probability, entropy and their gradients, of any logits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import univg_kernels as uk
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.triton_device import DEVICE, DTYPES, FACES, on_device
from torch import Tensor

SHAPES: dict[str, dict[str, Any]] = {
    "empty response, group of one, odd vocabulary": dict(lengths=(3, 0, 5, 1, 2), groups=(3, 1, 1), vocab=51),
    "one row, one token to choose": dict(lengths=(1,), groups=(1,), vocab=1),
    "vocabulary of several tiles, not a multiple": dict(lengths=(2, 1), groups=(2,), vocab=16500),
    "several chunks of the linear head": dict(lengths=(20, 12, 8), groups=(3,), vocab=40),
}
SOFTMAX: list[dict[str, Any]] = [
    dict(temperature=1.3),
    dict(temperature=0.8, softcap=2.0, logit_scale=1.7),
    dict(vocab_size=0.8),
    dict(softcap=30.0, vocab_size=0.8),
]


def tells_nothing_new(op: str, shape: str) -> bool:
    """Many rows are for the heads that take them in chunks."""
    return "chunks" in shape and not op.startswith("linear")


def outcome(op: str, case: Any, backend: uk.Backend, options: dict[str, Any]) -> list[Tensor]:
    """Both results and the gradients, for an upstream gradient of either sign and one that is 0."""
    names = ["logits"] if op == "selective_logprob" else ["hidden", "weight", "bias"]
    inputs = [getattr(case, name).clone().requires_grad_() for name in names]
    n = len(case.token_ids)
    upstream = torch.linspace(-1, 2, n, device=DEVICE)
    upstream[n // 2] = 0
    if op == "linear_ce":
        weight = torch.where(torch.arange(n, device=DEVICE) % 3 == 1, 0.0, 1.0 / n)
        options = dict(row_weight=weight) | {k: v for k, v in options.items() if k != "temperature"}
    first, second = getattr(uk, op)(
        token_ids=case.token_ids, backend=backend, **dict(zip(names, inputs, strict=True)), **options
    )
    total = first if op == "linear_ce" else (upstream * first).sum() + (upstream * second).sum()
    return [first.detach(), second.detach(), *torch.autograd.grad(total, inputs)]


def check(op: str, case: Any, dtype: torch.dtype, options: dict[str, Any], assert_no_worse: Any) -> None:
    base = on_device(case).to(dtype)
    if "vocab_size" in options:
        options = options | {"vocab_size": max(1, int(options["vocab_size"] * len(base.bias)))}
        base = replace(base, token_ids=base.token_ids.clamp(max=options["vocab_size"] - 1))
    runs = ((base, "triton"), (base, "reference"), (base.to(torch.float64), "reference"))
    results = zip(*(outcome(op, x, backend, options) for x, backend in runs), strict=True)
    for i, (got, eager, true) in enumerate(results):
        assert got.dtype == eager.dtype
        assert_no_worse(f"{op} result {i}, {options}", got, eager, true, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("op", ["selective_logprob", "linear_logprob", "linear_ce"])
def test_heads(make_case: Any, assert_no_worse: Any, op: str, shape: str, dtype: torch.dtype) -> None:
    """Each shape with another softmax, and selective_logprob with all of them."""
    if tells_nothing_new(op, shape):
        pytest.skip("no chunks")
    case = make_case(seed=12, **SHAPES[shape])
    which = list(SHAPES).index(shape)
    for options in SOFTMAX if op == "selective_logprob" else SOFTMAX[which : which + 1]:
        check(op, case, dtype, options, assert_no_worse)


@settings(deadline=None, max_examples=10, derandomize=True)
@given(
    rows=st.integers(1, 6),
    vocab=st.integers(1, 600),
    seed=st.integers(0, 99),
    dtype=st.sampled_from(DTYPES),
    options=st.sampled_from(SOFTMAX),
)
def test_any_shape(
    make_case: Any, assert_no_worse: Any, rows: int, vocab: int, seed: int, dtype: torch.dtype, options: dict[str, Any]
) -> None:
    case = make_case(seed=seed, lengths=(rows,), groups=(1,), vocab=vocab)
    check("selective_logprob", case, dtype, options, assert_no_worse)


def test_banned_tokens() -> None:
    """Logits of -inf have probability 0, no entropy and no gradient; a lane that holds nothing else spoils nothing."""
    z = torch.randn(3, 1500, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    z[:, 1:1400] = -torch.inf
    z.requires_grad_()
    ids = torch.tensor([0, 1400, 1499], device=DEVICE)
    logp, entropy = uk.selective_logprob(z, ids, backend="triton")
    (logp.sum() + entropy.sum()).backward()
    want = z.detach().clone().requires_grad_()
    ref_logp, ref_entropy = uk.selective_logprob(want, ids, backend="reference")
    keep = torch.isfinite(z.detach())
    torch.testing.assert_close((logp, entropy), (ref_logp, ref_entropy))
    assert z.grad is not None and bool((z.grad[~keep] == 0).all())
    small = z.detach()[keep].view(3, -1).requires_grad_()
    index = torch.tensor([0, 1, 100], device=DEVICE)
    small_logp, small_entropy = uk.selective_logprob(small, index, backend="reference")
    (small_logp.sum() + small_entropy.sum()).backward()
    torch.testing.assert_close(z.grad[keep], small.grad.flatten())


@pytest.mark.parametrize("softcap", [None, 30.0])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
def test_logprob_of_extreme_logits(scale: float, softcap: float | None, assert_no_worse: Any) -> None:
    """Rows far above and below the range of exp and of tanh, and a maximum that keeps rising along the row."""
    z = (torch.randn(4, 5000, generator=torch.Generator().manual_seed(1)) * scale).to(DEVICE)
    z[1] = torch.linspace(-400, 400, 5000)
    z[2] -= 1e4
    ids = torch.tensor([0, 4999, 17, 4096], device=DEVICE)
    results = []
    for x, backend in ((z, "triton"), (z, "reference"), (z.double(), "reference")):
        x = x.clone().requires_grad_()
        logp, entropy = uk.selective_logprob(x, ids, softcap=softcap, backend=backend)
        results.append([logp.detach(), entropy.detach(), torch.autograd.grad(logp.sum() - entropy.sum(), x)[0]])
    for name, got, eager, true in zip(("logp", "entropy", "gradient"), *results, strict=True):
        assert_no_worse(name, got, eager, true, torch.float32)


def test_nan_logits_give_nan() -> None:
    z = torch.zeros(3, 40, device=DEVICE)
    z[1, 30] = torch.nan
    for softcap in (None, 5.0):
        logp, entropy = uk.selective_logprob(
            z, torch.tensor([0, 0, 39], device=DEVICE), softcap=softcap, backend="triton"
        )
        assert logp.isnan().tolist() == entropy.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_padding_is_not_looked_at(softcap: float | None) -> None:
    """Columns from vocab_size on may hold anything, even NaN; their gradient is written, as 0."""
    z = torch.randn(4, 48, device=DEVICE, requires_grad=True)
    ids = torch.tensor([0, 36, 5, 7], device=DEVICE)
    spoilt = z.detach().clone()
    spoilt[:, 37:] = torch.nan
    results = []
    for x, vocab in ((spoilt.requires_grad_(), 37), (z.detach()[:, :37].clone().requires_grad_(), None)):
        logp, entropy = uk.selective_logprob(x, ids, softcap=softcap, vocab_size=vocab, backend="triton")
        (grad,) = torch.autograd.grad((logp - entropy).sum(), x)
        results.append((logp, entropy, grad[:, :37]))
        assert bool((grad[:, 37:] == 0).all())
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_rows_of_a_wider_matrix() -> None:
    """Logits may be a slice: rows apart by more than V."""
    wide = torch.randn(5, 64, device=DEVICE)
    ids = torch.arange(5, device=DEVICE)
    got, want = (uk.selective_logprob(wide[:, 3:43], ids, backend=face) for face in FACES)
    torch.testing.assert_close(got, want)


def test_fp64_is_refused() -> None:
    z = torch.zeros(1, 4, dtype=torch.float64, device=DEVICE)
    with pytest.raises(ValueError, match="float64"):
        uk.selective_logprob(z, torch.zeros(1, dtype=torch.int64, device=DEVICE), backend="triton")
