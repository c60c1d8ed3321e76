"""What the linear heads multiply and allocate: rows without a gradient are left out."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch
import univg_kernels as uk
from ops import linear_cases
from ops.linear_cases import BATCH, CHUNK, EVEN, HALF, ONES, RESPONSE, ROW, Called, H, N, Products, V
from torch import Tensor
from univg_kernels import _linear_head

skipping = linear_cases.skipping
small_chunks = linear_cases.small_chunks


def count_products(make_case, config: uk.GrpoConfig, given: dict[str, Any], *, frozen: bool = False, **options: Any):
    case = make_case(seed=4, **EVEN)
    hidden, weight = case.hidden.clone().requires_grad_(), case.weight.clone().requires_grad_(not frozen)
    with Products(H, V) as counter:
        out = uk.linear_grpo_loss(
            hidden, weight, case.token_ids, case.cu_seqlens, config=config, backend="cpp", **given, **options
        )
        out.loss.backward()
    assert (weight.grad is None) == frozen
    return counter.rows


@pytest.mark.parametrize(
    ("what", "config", "advantages", "rows"),
    [
        ("all active", ROW, ONES, 3 * N),
        ("half active", ROW, HALF, N + 2 * N / 2),
        ("none active", ROW, ONES * 0, N),
        ("whole responses in a chunk", RESPONSE, ONES, 3 * N),
        ("half of the responses active", RESPONSE, HALF, N + 2 * N / 2),
        ("batch", uk.GrpoConfig(top_entropy_quantile=0.5), ONES, None),
    ],
)
def test_rows_multiplied(make_case, what: str, config: uk.GrpoConfig, advantages: Tensor, rows: float | None) -> None:
    counted = count_products(make_case, config, {"advantages": advantages})
    if rows is None:  # two passes; the second one is of the rows of high entropy only
        rows = N + 3 * N / 2
    assert counted == pytest.approx(rows), what


def test_masked_rows_are_not_multiplied(make_case) -> None:
    for config in (ROW, RESPONSE, BATCH):
        mask = torch.arange(N) % 2 == 0
        counted = count_products(make_case, config, {"advantages": ONES, "mask": mask})
        assert N / 2 < counted < (4 if config is BATCH else 3) * N / 2 + 0.01


def test_rows_multiplied_for_a_frozen_head(make_case) -> None:
    given = {"advantages": ONES}
    assert count_products(make_case, ROW, given, frozen=True) == pytest.approx(2 * N)


def test_rows_multiplied_without_lengths_on_the_host(make_case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then rows that depend on their response cost a fourth product, but not where one chunk holds them all."""
    door = import_module("univg_kernels.linear_grpo_loss")
    check_rows = door.check_rows
    monkeypatch.setattr(door, "check_rows", lambda *args: check_rows(*args)._replace(host_seqlens=None))
    assert count_products(make_case, RESPONSE, {"advantages": ONES}) == pytest.approx(4 * N)
    monkeypatch.setattr(_linear_head, "default_chunk_rows", lambda num_rows, vocab: N)
    assert count_products(make_case, RESPONSE, {"advantages": ONES}) == pytest.approx(3 * N)
    assert count_products(make_case, BATCH, {"advantages": ONES}) <= 3 * N


def test_rows_multiplied_with_a_reference(make_case) -> None:
    reference = {"ref_hidden": torch.randn(N, H, dtype=torch.float64)}
    assert count_products(make_case, ROW, {"advantages": ONES}, **reference) == pytest.approx(4 * N)
    no_kl = uk.GrpoConfig(beta=0.0)
    assert count_products(make_case, no_kl, {"advantages": ONES}, **reference) == pytest.approx(3 * N)


def test_never_the_logits(make_case) -> None:
    """Nothing is allocated that is larger than a chunk of logits or one of the gradients; with weight_grad, no other
    buffer of the weight's size."""
    case = make_case(seed=5, **{**EVEN, "vocab": 20000})
    for config in (ROW, RESPONSE, BATCH):
        hidden = case.hidden.bfloat16().requires_grad_()
        weight, buffer = case.weight.bfloat16().requires_grad_(), torch.zeros(20000, H)
        with Products(H, 20000) as counter:
            out = uk.linear_grpo_loss(
                hidden, weight, case.token_ids, case.cu_seqlens, config=config, advantages=ONES, backend="cpp",
                weight_grad=buffer,
            )  # fmt: skip
            out.loss.backward()
        assert counter.largest <= CHUNK * 20000
        assert counter.largest < N * 20000 / 4 and bool(buffer.any())


@pytest.mark.parametrize(
    ("config", "advantages", "rows"),
    # The chunks hold 16 rows each, whole responses; of a chunk without active rows one row of zeros is multiplied.
    [
        (ROW, HALF, N + N),
        (ROW, ONES * 0, N + 2 * 5),
        (RESPONSE, HALF, N + N),
        (uk.GrpoConfig(top_entropy_quantile=0.5), ONES, N + 3 * N / 2 + 3 * 2),  # the last two of 5 chunks have none
    ],
)
@pytest.mark.parametrize("skipping", ["on the device"], indirect=True)
def test_rows_multiplied_as_counted_on_the_device(make_case, skipping, config, advantages, rows) -> None:
    case = make_case(seed=4, **EVEN).to(torch.float32)
    hidden, weight = case.hidden.requires_grad_(), case.weight.requires_grad_()
    with Products(H, V) as counter:
        out = uk.linear_grpo_loss(
            hidden, weight, case.token_ids, case.cu_seqlens, config=config, advantages=advantages, backend="cpp"
        )
        out.loss.backward()
    assert counter.rows == pytest.approx(rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("skipping", ["on the host", "on the device"], indirect=True)
def test_one_weight_for_all_rows_looks_for_none_to_skip(make_case, skipping, dtype: torch.dtype) -> None:
    case = make_case(seed=4, **EVEN).to(dtype)
    results, calls = [], []
    for row_weight in (1 / N, torch.full((N,), 1 / N)):
        inputs = [x.clone().requires_grad_() for x in (case.hidden, case.weight, case.bias)]
        with Called() as called, Products(H, V) as counter:
            loss, logp = uk.linear_ce(
                inputs[0], inputs[1], case.token_ids, row_weight=row_weight, bias=inputs[2], backend="cpp"
            )
        results.append([loss.detach(), logp, *torch.autograd.grad(loss, inputs)])
        calls.append(set(called.names))
        assert counter.rows == pytest.approx(3 * N)
    torch.testing.assert_close(*results)
    skips = {"nonzero", "index", "index_put_"} if skipping == "on the host" else {"sort", "index", "_grouped_mm"}
    assert not skips & calls[0] and skips <= calls[1]


@pytest.mark.parametrize(("skipping", "rows"), [("on the host", 30), ("on the device", 33)], indirect=["skipping"])
@pytest.mark.parametrize(("frozen", "products"), [("none", 3), ("weight", 2), ("hidden", 2)])
def test_logprob_makes_the_active_rows_once_more(make_case, skipping, rows: int, frozen: str, products: int) -> None:
    """Counted on the device they lie in the first two of 5 chunks; of each other one row of zeros is multiplied."""
    case = make_case(seed=4, **EVEN).to(torch.float32)
    hidden, weight = (case.hidden.requires_grad_(frozen != "hidden"), case.weight.requires_grad_(frozen != "weight"))
    logp, entropy = uk.linear_logprob(hidden, weight, case.token_ids, backend="cpp")
    upstream = torch.zeros(N)
    upstream[5:25] = 1.0
    with Products(H, V) as counter:
        torch.autograd.backward([logp, entropy], [upstream, upstream.roll(10)])
    assert counter.rows == pytest.approx(products * rows)
    assert (weight.grad is None) == (frozen == "weight") and (hidden.grad is None) == (frozen == "hidden")
