"""`weight_grad`: a buffer that takes the gradient of the weight."""

from __future__ import annotations

import pytest
import torch
import univg_kernels as uk
from ops import linear_cases
from ops.linear_cases import CONFIGS, ROW, SEVERAL, make
from torch import Tensor

small_chunks = linear_cases.small_chunks


def add_into(
    case, buffer: Tensor | None, backend: str, *, config: uk.GrpoConfig = ROW, frozen: bool = False, op="policy"
):
    hidden, weight = case.hidden.clone().requires_grad_(), case.weight.clone().requires_grad_(not frozen)
    if op == "policy":
        kwargs = case.arguments("linear_grpo_loss")[1]
        loss = uk.linear_grpo_loss(hidden, weight, config=config, weight_grad=buffer, backend=backend, **kwargs).loss
    else:
        row_weight = torch.linspace(0, 1, len(hidden))
        loss, _ = uk.linear_ce(
            hidden, weight, case.token_ids, row_weight=row_weight, weight_grad=buffer, backend=backend
        )  # fmt: skip
    return loss, hidden, weight


@pytest.mark.parametrize("op", ["policy", "ce"])
@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_weight_grad_adds_up(make_case, backend: str, op: str) -> None:
    """Two calls into one buffer are the sum of their gradients, besides what was there; weight itself gets none."""
    cases = [make(make_case, seed, **SEVERAL) for seed in (6, 7)]
    want, buffer = torch.full_like(cases[0].weight, 0.25), torch.full_like(cases[0].weight, 0.25)
    for case in cases:
        loss, hidden, weight = add_into(case, None, "reference", op=op)
        loss.backward()
        got_loss, got_hidden, got_weight = add_into(case, buffer, backend, op=op)
        got_loss.backward()
        want += weight.grad
        assert got_weight.grad is None
        torch.testing.assert_close(got_hidden.grad, hidden.grad, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(buffer, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["rows", "batch"])
def test_weight_grad_in_fp32_keeps_what_half_precision_loses(make_case, assert_no_worse, name: str) -> None:
    """Small gradients on top of a large one: a buffer in fp32 takes them in."""
    case = make(make_case, 8, **SEVERAL).to(torch.bfloat16)
    start = 64.0  # the gradients lie below half a unit in the last place of it in bf16
    buffer = torch.full(case.weight.shape, start)
    truth = torch.zeros(case.weight.shape, dtype=torch.float64)
    add_into(case.to(torch.float64), truth, "reference", config=CONFIGS[name])[0].backward()
    add_into(case, buffer, "cpp", config=CONFIGS[name])[0].backward()
    loss, _, weight = add_into(case, None, "reference", config=CONFIGS[name])
    loss.backward()
    assert_no_worse("weight_grad", buffer - start, weight.grad, truth, torch.bfloat16)


def test_weight_grad_of_the_columns_that_exist(make_case) -> None:
    case, buffer = make(make_case, 9, **SEVERAL), torch.full((50, 8), 3.0, dtype=torch.float64)
    add_into(case, buffer, "cpp", config=CONFIGS["padding, soft cap, scale"])[0].backward()
    assert bool((buffer[37:] == 3.0).all()) and bool((buffer[:37] != 3.0).any())


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_weight_grad_of_a_frozen_weight(make_case, backend: str) -> None:
    """Asked for, it is made."""
    case = make(make_case, 10)
    want, got = torch.zeros_like(case.weight), torch.zeros_like(case.weight)
    add_into(case, want, "reference")[0].backward()
    add_into(case, got, backend, frozen=True)[0].backward()
    assert bool(want.any())
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("op", ["policy", "ce"])
def test_weight_grad_takes_an_upstream_gradient_of_one(make_case, op: str) -> None:
    case = make(make_case, 11)
    loss, *_ = add_into(case, torch.zeros_like(case.weight), "cpp", op=op)
    with pytest.raises(
        RuntimeError, match=r"with weight_grad .* upstream gradient of 1.*scale the loss by denominator"
    ):
        (loss / 2).backward()


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_weight_grad_is_left_alone_without_gradients(make_case, backend: str) -> None:
    case = make(make_case, 12)
    buffer = torch.zeros_like(case.weight)
    with torch.no_grad():
        loss, *_ = add_into(case, buffer, backend)
    assert not loss.requires_grad and not bool(buffer.any())
