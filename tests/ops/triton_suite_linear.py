"""The linear heads' Triton faces, where only the device knows which rows have a gradient. Run like triton_suite.py."""

from __future__ import annotations

import pytest
import torch
import univg_kernels as uk
from ops.linear_cases import Called
from ops.triton_device import DEVICE, moved
from torch import Tensor
from univg_kernels import _linear_head
from univg_kernels._linear_head import Head, can_count_on_device
from univg_kernels._linear_sweeps import order_on_device
from univg_kernels._triton.compact import triton_compact_

CHUNK = 16
SEVERAL = dict(lengths=(7, 0, 9, 3, 5, 10), groups=(4, 2), vocab=40)  # 34 rows
CONFIGS = {
    "rows": uk.GrpoConfig(entropy_coef=0.02),
    "responses": uk.GrpoConfig(importance_sampling_level="sequence", beta=0.0),
    "batch": uk.GrpoConfig(top_entropy_quantile=0.6),
    "padding, soft cap": uk.GrpoConfig(vocab_size=37, softcap=1.5, temperature=1.2),
}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_linear_head, "chunk_rows", lambda head: CHUNK)
    for module in ("_linear_forward", "_linear_sweeps", "_linear_losses"):
        monkeypatch.setattr(f"univg_kernels.{module}.chunk_rows", lambda head: CHUNK)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("rows", "vocab"), [(40, 37), (33, 3000)])
def test_compaction(rows: int, vocab: int, share: float) -> None:
    g = torch.Generator().manual_seed(rows)
    for dtype in (torch.bfloat16, torch.float32):
        head = Head(torch.zeros(rows, 8, dtype=dtype, device=DEVICE), torch.zeros(vocab, 8, device=DEVICE), None)
        z = head.buffer(rows)
        z.copy_(torch.randn(rows, vocab, generator=g))
        before, active = z.clone(), (torch.rand(rows, generator=g) < share).to(DEVICE)
        kept = order_on_device(active)
        triton_compact_(z, kept.rows, kept.number)
        count = int(active.sum())
        assert int(kept.number) == count and torch.equal(z[:count], before[active])


def outcome(case, config: uk.GrpoConfig, backend: str, buffer: Tensor | None = None) -> list[Tensor]:
    inputs, kwargs = case.arguments("linear_grpo_loss")
    inputs = tuple(t.detach().to(DEVICE).requires_grad_() for t in inputs[:2])
    kwargs = moved(kwargs) | {"cu_seqlens": case.cu_seqlens}  # the lengths stay on the host
    out = uk.linear_grpo_loss(*inputs, config=config, backend=backend, weight_grad=buffer, **kwargs)
    out.loss.backward()
    return [*out, *(t.grad if t.grad is not None else buffer for t in inputs)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_policy_losses(make_case, assert_no_worse, name: str, dtype: torch.dtype) -> None:
    """With rows that have no gradient, whose number only the device knows; the weight's gradient in an fp32 buffer."""
    case, config = make_case(1, **SEVERAL), CONFIGS[name]
    case.token_ids.remainder_(37)
    if name == "batch":
        case.rows["entropy_threshold"] = 2.8
    case = case.to(dtype)
    truth, eager = outcome(case.to(torch.float64), config, "reference"), outcome(case, config, "reference")
    got = outcome(case, config, "triton", torch.zeros(case.weight.shape, device=DEVICE))
    for i, (x, e, t) in enumerate(zip(got, eager, truth, strict=True)):
        if i == 4 and dtype == torch.bfloat16:  # every chunk's product is rounded, of which there are three
            e = t + (e - t) * 2
        assert_no_worse(f"{name} result {i}", x, e, t, dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("op", ["linear_ce", "linear_logprob"])
def test_heads(make_case, assert_no_worse, op: str, dtype: torch.dtype) -> None:
    case = make_case(2, **SEVERAL).to(dtype)
    upstream = torch.linspace(-1, 1, 34, device=DEVICE) * (torch.arange(34, device=DEVICE) % 3 != 0)

    def run(case, backend: str) -> list[Tensor]:
        inputs = [t.detach().to(DEVICE).requires_grad_() for t in (case.hidden, case.weight)]
        options = dict(row_weight=upstream) if op == "linear_ce" else {}
        first, second = getattr(uk, op)(*inputs, case.token_ids.to(DEVICE), softcap=2.0, backend=backend, **options)
        total = first if op == "linear_ce" else ((first + 0.3 * second) * upstream).sum()
        return [first.detach(), second.detach(), *torch.autograd.grad(total, inputs)]

    results = zip(run(case, "triton"), run(case, "reference"), run(case.to(torch.float64), "reference"), strict=True)
    for i, (x, e, t) in enumerate(results):
        if i == 3 and dtype == torch.bfloat16:
            e = t + (e - t) * 2
        assert_no_worse(f"{op} result {i}", x, e, t, dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_one_weight_for_all_rows(make_case, assert_no_worse, dtype: torch.dtype) -> None:
    """The result of a tensor of equal weights, without the sorting, the moving and the gathering of rows."""
    case = make_case(2, **SEVERAL).to(dtype)

    def run(case, backend: str, weight: float | Tensor) -> tuple[list[Tensor], list[str]]:
        inputs = [t.detach().to(DEVICE).requires_grad_() for t in (case.hidden, case.weight)]
        ids = case.token_ids.to(DEVICE)
        with Called() as called:
            loss, logp = uk.linear_ce(*inputs, ids, row_weight=weight, softcap=2.0, backend=backend)
        return [loss.detach(), logp, *torch.autograd.grad(loss, inputs)], called.names

    equal = torch.full((34,), 0.3, device=DEVICE)
    (got, calls), (same, other_calls) = (run(case, "triton", weight) for weight in (0.3, equal))
    faces = (got, same, run(case, "reference", 0.3)[0], run(case.to(torch.float64), "reference", 0.3)[0])
    for i, (x, y, e, t) in enumerate(zip(*faces, strict=True)):
        if i == 3 and dtype == torch.bfloat16 and DEVICE == "cpu":  # every chunk's product is rounded here
            e = t + (e - t) * 2
        assert_no_worse(f"result {i}", x, e, t, dtype)
        if DEVICE == "cpu" or i < 2:  # there the products are the same ones
            torch.testing.assert_close(x, y)
    skips = {"sort", "index", "index_put_", "_grouped_mm", "triton_compact_"}
    assert not skips & set(calls)
    assert calls.count("mm") + calls.count("addmm") == 3 * 3  # products and chunks
    if can_count_on_device(case.hidden.to(DEVICE)):
        assert skips <= set(other_calls)


def test_only_active_rows_are_multiplied(make_case, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is handed to the products as their number of rows."""
    case = make_case(3, **{**SEVERAL, "lengths": (8, 8, 8, 8), "groups": (4,)}, masked=False, old=False, ref=False)
    case = case.to(torch.bfloat16)
    if not can_count_on_device(case.hidden.to(DEVICE)):
        pytest.skip("this GPU's torch multiplies all rows")
    numbers: list[int] = []
    grouped = torch.nn.functional.grouped_mm

    def counting(a: Tensor, b: Tensor, *, offs: Tensor) -> Tensor:
        numbers.append(int(offs))
        return grouped(a, b, offs=offs)

    monkeypatch.setattr(torch.nn.functional, "grouped_mm", counting)
    case.rows.clear()
    case.rows["advantages"] = torch.tensor([1.0, 0.0, 0.0, 0.0])
    outcome(case, uk.GrpoConfig(beta=0.0), "triton")
    assert numbers == [8, 8, 1, 1]  # dH and dW of each chunk of 16; of a chunk without any, one row of zeros
