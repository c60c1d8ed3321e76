"""The linear heads: every path to the gradients against the reference.

Their Triton faces: triton_suite_linear.py. What each path multiplies: test_linear_products.py.
"""

from __future__ import annotations

import pytest
import torch
import univg_kernels as uk
from ops import linear_cases
from ops.linear_cases import CHUNK, CONFIGS, SEVERAL, SHAPES, SKIPPING, WEIGHT, make, outcome, references
from torch import Tensor
from univg_kernels import _linear_head

skipping = linear_cases.skipping
small_chunks = linear_cases.small_chunks


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("skipping", ["on the host", "nothing"], indirect=True)
def test_every_path_is_the_reference(make_case, skipping: str, name: str, shape: str) -> None:
    case = make(make_case, 1, **SHAPES[shape])
    results = (outcome(case, CONFIGS[name], backend) for backend in ("cpp", "reference"))
    for got, want in zip(*results, strict=True):
        precise = got.dtype == torch.float64
        torch.testing.assert_close(got, want, rtol=1e-10 if precise else 1e-6, atol=1e-10 if precise else 1e-6)


@pytest.mark.parametrize("reference", ["tied weight", "its own width, weight and bias"])
@pytest.mark.parametrize("name", ["rows", "responses", "batch", "padding, soft cap, scale"])
def test_reference_policy_in_the_same_pass(make_case, name: str, reference: str) -> None:
    case = make(make_case, 2, **SEVERAL)
    results = (outcome(case, CONFIGS[name], backend, reference, bias=False) for backend in ("cpp", "reference"))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6 if got.dtype == torch.float32 else 1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["rows", "responses", "batch", "padding, soft cap, scale"])
def test_precision(make_case, assert_no_worse, name: str, dtype: torch.dtype) -> None:
    case, config = make(make_case, 3, **SEVERAL).to(dtype), CONFIGS[name]
    if name == "batch":  # given, so that rounding moves no row across it
        config = uk.GrpoConfig(top_entropy_quantile=0.6, entropy_coef=0.02)
        case.rows["entropy_threshold"] = 3.0
    truth = outcome(case.to(torch.float64), config, "reference")
    results = zip(outcome(case, config, "cpp"), outcome(case, config, "reference"), truth, strict=True)
    for i, (got, eager, true) in enumerate(results):
        assert got.dtype == eager.dtype
        if i == WEIGHT and dtype == torch.bfloat16:  # every chunk's product is rounded, of which there are four
            eager = true + (eager - true) * 2
        assert_no_worse(f"{name} result {i}", got, eager, true, dtype)


@pytest.mark.parametrize("given", ["weight_grad", "reference"])
@pytest.mark.parametrize("name", ["rows", "responses", "batch"])
def test_compiled_equals_eager(make_case, name: str, given: str) -> None:
    """Without a graph break, although nothing is skipped there."""
    torch.compiler.reset()
    case = make(make_case, 21, lengths=(7, 0, 9, 3), groups=(4,)).to(torch.float32)
    _, kwargs = case.arguments("linear_grpo_loss")
    if given == "reference":
        kwargs |= references(case, "its own width, weight and bias") | {"ref_logp": None}

    def step(compiled: bool) -> tuple[Tensor, list[Tensor]]:
        hidden, weight = case.hidden.clone().requires_grad_(), case.weight.clone().requires_grad_()
        buffer = torch.zeros_like(weight)

        def loss(h: Tensor, w: Tensor) -> Tensor:
            into = {"weight_grad": buffer} if given == "weight_grad" else {}
            return uk.linear_grpo_loss(h, w, config=CONFIGS[name], **into, **kwargs).loss

        call = torch.compile(loss, fullgraph=True, backend="aot_eager") if compiled else loss
        value = call(hidden, weight)
        value.backward(retain_graph=True)
        grads = [hidden.grad, buffer if given == "weight_grad" else weight.grad]
        if given == "weight_grad" and compiled:
            with pytest.raises(RuntimeError, match="upstream gradient of 1"):
                (value * 2).backward()
        return value.detach(), [g.clone() for g in grads]

    eager = step(False)  # first: the face is imported outside of the trace
    torch.testing.assert_close(step(True), eager)


@pytest.mark.parametrize("skipping", ["on the device"], indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_counted_on_the_device(make_case, assert_no_worse, skipping: str, name: str, dtype: torch.dtype) -> None:
    case, config = make(make_case, 16, **SEVERAL, ref=name != "rows without a KL term").to(dtype), CONFIGS[name]
    if "batch" in name:
        case.rows["entropy_threshold"] = 3.0
    bias = "batch" not in name  # without one, the second product is of as many rows, too
    truth = outcome(case.to(torch.float64), config, "reference", bias=bias)
    faces = (outcome(case, config, backend, bias=bias) for backend in ("cpp", "reference"))
    for i, (got, eager, true) in enumerate(zip(*faces, truth, strict=True)):
        if i == WEIGHT and dtype == torch.bfloat16:  # as above
            eager = true + (eager - true) * 2
        assert_no_worse(f"{name} result {i}", got, eager, true, dtype)


@pytest.mark.parametrize("chunk", [CHUNK, 64])  # of 64 rows torch's bf16 product on the CPU reads what lies between
@pytest.mark.parametrize("skipping", SKIPPING, indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_nothing_is_read_before_it_is_written(
    make_case, monkeypatch, name: str, dtype: torch.dtype, skipping: str, chunk: int
) -> None:
    """torch can fill what it allocates with NaN."""
    monkeypatch.setattr(_linear_head, "default_chunk_rows", lambda num_rows, vocab: chunk)
    case = make(make_case, 20, **SEVERAL, ref=name != "rows without a KL term").to(dtype)
    plain = outcome(case, CONFIGS[name], "cpp", bias="batch" not in name)
    torch.use_deterministic_algorithms(True)
    try:
        filled = outcome(case, CONFIGS[name], "cpp", bias="batch" not in name)
    finally:
        torch.use_deterministic_algorithms(False)
    for a, b in zip(plain, filled, strict=True):
        assert torch.equal(a, b)
