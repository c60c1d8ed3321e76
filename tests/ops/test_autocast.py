"""Inside torch.autocast the linear heads are what F.linear is there; others do not change."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import univg_kernels as uk
from torch import Tensor

N, H, V = 6, 8, 11
LOSS: dict[str, Any] = dict(cu_seqlens=torch.tensor([0, 4, 6]), advantages=torch.tensor([1.0, -0.5]))
HEADS: dict[str, dict[str, Any]] = {
    "linear_grpo_loss": LOSS,
    "linear_ce": dict(row_weight=torch.ones(N)),
    "linear_logprob": {},
}


def outcome(op: str, backend: uk.Backend, hidden: Tensor, weight: Tensor, autocast: bool) -> list[Tensor]:
    h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        more = dict(ref_hidden=hidden.detach()) if op == "linear_grpo_loss" else {}
        out = getattr(uk, op)(h, w, token_ids=torch.arange(N), backend=backend, **HEADS[op], **more)
        out[0].sum().backward()
    assert h.grad is not None and w.grad is not None
    assert h.grad.dtype == hidden.dtype and w.grad.dtype == weight.dtype
    return [out[0].detach(), h.grad, w.grad]


@pytest.mark.parametrize("hidden_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("op", HEADS)
def test_as_if_cast_by_hand(op: str, backend: uk.Backend, hidden_dtype: torch.dtype) -> None:
    """fp32 master weights, with hidden states in either dtype: autocast makes bf16 of both, the gradients come back."""
    g = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(N, H, generator=g).to(hidden_dtype), torch.randn(V, H, generator=g)
    got = outcome(op, backend, hidden, weight, autocast=True)
    want = outcome(op, backend, hidden.bfloat16(), weight.bfloat16(), autocast=False)
    assert got[0].dtype == torch.float32
    for x, y in zip(got, want, strict=True):
        torch.testing.assert_close(x.float(), y.float(), rtol=0, atol=0)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_fp64_stays(backend: uk.Backend) -> None:
    """As in F.linear."""
    hidden, weight = torch.ones(N, H, dtype=torch.float64), torch.ones(V, H, dtype=torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logp, _ = uk.linear_logprob(hidden, weight, torch.arange(N), backend=backend)
    assert logp.dtype == torch.float64


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_losses_of_logits_do_not_change(backend: uk.Backend) -> None:
    z = torch.randn(N, V, generator=torch.Generator().manual_seed(0))

    def loss(autocast: bool) -> tuple[Tensor, Tensor]:
        x = z.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            out = uk.grpo_loss(x, torch.arange(N), inplace=False, backend=backend, **LOSS)
            out.loss.backward()
        assert x.grad is not None
        return out.loss, x.grad

    for x, y in zip(loss(True), loss(False), strict=True):
        assert x.dtype == torch.float32
        torch.testing.assert_close(x, y)
