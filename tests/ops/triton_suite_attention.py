"""The Triton face of `shared_prefix_attention` against its specification: tiles, edges, heads, and registration."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import univg_kernels as uk
from ops.triton_device import DEVICE, DTYPES
from torch import Tensor
from univg_kernels.shared_prefix_attention.reference import mask

ROWS = {
    "one prompt": [(3, [])],
    "one token": [(1, [])],
    "tiles cut everywhere": [(70, [5, 66, 1, 0, 130]), (1, [3]), (40, []), (129, [64, 64])],
    "no prompt": [(0, [4, 65]), (3, [2])],
}
HEADS = {"grouped": (4, 2, 24), "one for all": (3, 1, 16), "each its own": (2, 2, 64)}


def eager(query: Tensor, key: Tensor, value: Tensor, layout: uk.SharedPrefix) -> Tensor:
    """Three lines of torch, each rounded to the inputs' dtype."""
    k, v = (x.repeat_interleave(query.shape[1] // key.shape[1], 1) for x in (key, value))
    scores = torch.einsum("qhd,khd->hqk", query, k) * query.shape[2] ** -0.5
    weights = scores.masked_fill(~mask(layout), float("-inf")).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, v)


def run(qkv: tuple[Tensor, ...], layout: uk.SharedPrefix, slope: Tensor, backend: str) -> list[Tensor]:
    qkv = tuple(x.detach().requires_grad_() for x in qkv)
    face = eager if backend == "eager" else partial(uk.shared_prefix_attention, backend=backend)
    out = face(*qkv, layout)
    return [out.detach(), *torch.autograd.grad(out, qkv, slope.to(out.dtype))]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("row", ROWS)
def test_parity(assert_no_worse, row: str, heads: str, dtype: torch.dtype) -> None:  # type: ignore[no-untyped-def]
    if row == "tiles cut everywhere" and heads != "grouped":
        pytest.skip("tells nothing new")
    layout = uk.shared_prefix(ROWS[row])
    (many, few, dim), tokens = HEADS[heads], len(layout.segment_start)
    g = torch.Generator().manual_seed(5)
    # as a model hands them over: [heads, T, D], turned
    qkv = tuple(torch.randn(n, tokens, dim, generator=g).to(DEVICE, dtype).transpose(0, 1) for n in (many, few, few))
    slope, layout = torch.randn(tokens, many, dim, generator=g).to(DEVICE), layout.to(DEVICE)
    truth = run(tuple(x.double() for x in qkv), layout, slope.double(), "reference")
    same_dtype, got = (run(qkv, layout, slope, backend) for backend in ("eager", "triton"))
    for name, *results in zip(("output", "query", "key", "value"), got, same_dtype, truth, strict=True):
        assert results[0].dtype == dtype
        # a lone key's score has the slope 0, a difference of sums over the channels: judged on their scale
        x, e, t = (torch.cat([r.flatten(), r.new_full((1,), dim**0.5)]) for r in results)
        assert_no_worse(name, x, e, t, dtype)


def test_a_prompts_gradient_is_summed_in_fp32() -> None:
    """600 responses that each add a third: a sum kept in bf16 would stop growing at 128."""
    layout = uk.shared_prefix([(2, [1] * 600)]).to(DEVICE)
    query, key = (torch.zeros(602, 1, 16, dtype=torch.bfloat16, device=DEVICE) for _ in range(2))
    value = torch.zeros_like(key).requires_grad_()
    out = uk.shared_prefix_attention(query, key, value, layout, backend="triton")
    (by_value,) = torch.autograd.grad(out, value, torch.ones_like(out))
    assert abs(float(by_value[1, 0, 0]) - (0.5 + 600 / 3)) <= 1  # half of the second token's own; bf16 is 1 apart here
    assert abs(float(by_value[0, 0, 0]) - (1.5 + 600 / 3)) <= 1


def test_groups_do_not_see_each_other() -> None:
    layout, g = uk.shared_prefix([(30, [40, 5]), (20, [50])]).to(DEVICE), torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(145, 2, 16, generator=g).to(DEVICE) for _ in range(3))
    before = uk.shared_prefix_attention(q, k, v, layout, backend="triton")
    k[75:], v[75:] = 9.0, -3.0
    assert torch.equal(uk.shared_prefix_attention(q, k, v, layout, backend="triton")[:75], before[:75])


def test_fp64_is_left_to_the_specification() -> None:
    layout = uk.shared_prefix([(5, [2, 1])]).to(DEVICE)
    qkv = (torch.randn(8, 2, 16, device=DEVICE, dtype=torch.float64) for _ in range(3))
    with pytest.raises(ValueError, match="shared_prefix_attention: backend 'triton' computes in fp32"):
        uk.shared_prefix_attention(*qkv, layout, backend="triton")
