"""What callers of the Triton faces of the policy losses rely on: factors of responses and groups, rewritten logits,
masks, registration. The loss table is in triton_suite_table.py, the softmax in triton_suite_heads.py.

Not collected by itself: test_triton_interpreter.py runs the suites in a process of their own, where TRITON_INTERPRET is
set before triton is imported, so that the session that compiles kernels ahead of time keeps the real compiler. With a
GPU they are run there, too, without the interpreter.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import univg_kernels as uk
from ops.triton_device import DEVICE, DTYPES, FACES, on_device
from ops.triton_suite_heads import SHAPES, tells_nothing_new
from torch import Tensor
from univg_kernels import _linear_head

NAMES = {"grpo_loss": ["logits"], "linear_grpo_loss": ["hidden", "weight", "bias"], "policy_loss": ["logp"]}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_linear_head, "default_chunk_rows", lambda num_rows, vocab: 16)


def run(case: Any, op: str, config: uk.GrpoConfig, backend: uk.Backend) -> tuple[uk.GrpoOutput, tuple[Tensor, ...]]:
    inputs, kwargs = case.arguments(op)
    named = dict(zip(NAMES[op], inputs, strict=True))
    if op == "policy_loss":
        kwargs["entropy"] = inputs[0].detach() * -2
    out = getattr(uk, op)(**named, config=config, denominator=3.5, backend=backend, **kwargs)
    return out, torch.autograd.grad(out.loss * 2.0, inputs)


def check(case: Any, op: str, config: uk.GrpoConfig, dtype: torch.dtype, assert_no_worse: Any) -> None:
    case = on_device(case).to(dtype)
    truth, true_grads = run(case.to(torch.float64), op, config, "reference")
    eager, eager_grads = run(case, op, config, "reference")
    got, grads = run(case, op, config, "triton")
    assert got.loss.dtype == got.metrics.dtype == got.logp.dtype == torch.float32
    assert_no_worse("logp", got.logp, eager.logp, truth.logp, dtype)
    # The loss is a sum of terms of size 1 that cancel, and a difference is of numbers of the size of logp: their errors
    # are judged on that scale, not on their own.
    scales = {"loss": 1.0, "logp_diff_max": float(truth.logp.abs().max())}
    for i, name in enumerate(("loss", *uk.METRICS)):
        values = ((x.loss.detach() if name == "loss" else x.metrics[i - 1]) for x in (got, eager, truth))
        judged = (torch.stack([v.double(), v.new_tensor(scales.get(name, 0.0)).double()]) for v in values)
        assert_no_worse(name, *judged, dtype)
    for name, x, e, t in zip(NAMES[op], grads, eager_grads, true_grads, strict=True):
        assert x.dtype == dtype
        assert_no_worse(f"d {name}", x, e, t, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("op", NAMES)
def test_policy_losses(make_case: Any, assert_no_worse: Any, op: str, shape: str, dtype: torch.dtype) -> None:
    if tells_nothing_new(op, shape):
        pytest.skip("no chunks")
    case = make_case(seed=11, temperature=0.9, **SHAPES[shape])
    check(case, op, uk.GrpoConfig(temperature=0.9), dtype, assert_no_worse)


CONFIGS = {
    "no KL": uk.GrpoConfig(beta=0.0),
    "two-sided clip": uk.GrpoConfig(delta=1.25, epsilon_high=0.4, beta=0.3, temperature=0.7),
    "phi below 0": uk.GrpoConfig(difficulty="log"),
    "statistics of the batch": uk.GrpoConfig(scale_rewards="batch", normalize_difficulty=True),
    "power, centred only": uk.GrpoConfig(difficulty="power", difficulty_power=2.0, scale_rewards="none"),
    "groups of one as they are": uk.GrpoConfig(center_singletons=False),
    "the same in a batch": uk.GrpoConfig(center_singletons=False, scale_rewards="batch"),
    "groups, sequence level": uk.GrpoConfig(importance_sampling_level="sequence", center_singletons=False),
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("op", ["grpo_loss", "policy_loss"])
def test_settings(make_case: Any, assert_no_worse: Any, op: str, name: str) -> None:
    config = CONFIGS[name]
    case = make_case(seed=3, temperature=config.temperature)
    if name == "phi below 0":
        case.rows["accuracy"] = torch.full_like(case.rows["accuracy"], 0.995)
    check(case, op, config, torch.float32, assert_no_worse)


@pytest.mark.parametrize(
    "case",
    [dict(old=False, ref=False), dict(given=True), dict(masked=False), dict(equal_rewards=True, ref=False)],
    ids=str,
)
@pytest.mark.parametrize("op", ["grpo_loss", "policy_loss"])
def test_absent_and_given_arguments(make_case: Any, assert_no_worse: Any, op: str, case: dict[str, Any]) -> None:
    check(make_case(seed=4, **case), op, uk.GrpoConfig(), torch.float32, assert_no_worse)


COUPLINGS = {
    "row": uk.GrpoConfig(entropy_coef=0.1),
    "response": uk.GrpoConfig(importance_sampling_level="sequence", entropy_coef=0.1),
    "batch": uk.GrpoConfig(loss_type="gmpo", top_entropy_quantile=0.6),
}


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_masked_rows_are_not_read_and_get_zeros(make_case: Any, coupling: str) -> None:
    """NaN in rows that do not count reaches nothing; in place, their gradient is written over the NaN."""
    case = on_device(make_case(seed=5)).to(torch.float32)
    mask = case.rows["mask"]
    shared = dict(cu_seqlens=case.cu_seqlens, token_ids=case.token_ids, backend="triton")
    kwargs = shared | dict(config=COUPLINGS[coupling], **case.rows)
    clean, spoilt = ((case.logits * 1.0).requires_grad_() for _ in range(2))
    with torch.no_grad():
        spoilt[~mask] = torch.nan
    a = uk.grpo_loss(clean * 1.0, **kwargs)
    over = spoilt * 1.0
    b = uk.grpo_loss(over, **kwargs)
    assert torch.equal(a.loss, b.loss) and torch.equal(a.metrics, b.metrics) and torch.equal(a.logp, b.logp)
    (grad,) = torch.autograd.grad(b.loss, over)
    assert grad.data_ptr() == over.data_ptr(), "the gradient was not made in place"
    assert bool((grad[~mask] == 0).all()) and bool((grad[mask] != 0).any())


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_nan_is_not_lost(make_case: Any, coupling: str) -> None:
    """NaN in a row that counts is in the loss and, for those who wait for the gradient, where it came from."""
    case = on_device(make_case(seed=5, ref=False)).to(torch.float32)
    (logits,), kwargs = case.arguments("grpo_loss")
    row = int(case.rows["mask"].nonzero()[2])
    with torch.no_grad():
        logits[row, 7] = torch.nan
    for face in FACES:
        out = uk.grpo_loss(logits, config=COUPLINGS[coupling], backend=face, **kwargs)
        (grad,) = torch.autograd.grad(out.loss, logits)
        assert out.loss.isnan() and out.metrics.isnan().any() and grad[row].isnan().all(), face
        others = torch.ones(len(grad), dtype=torch.bool, device=DEVICE)
        response = int(torch.searchsorted(case.cu_seqlens, row, right=True)) - 1
        others[int(case.cu_seqlens[response]) : int(case.cu_seqlens[response + 1])] = False
        assert coupling == "batch" or not bool(grad[others].isnan().any()), face


def test_in_place_on_flattened_logits() -> None:
    """What models hand out is [B, L, V]: its view as rows is overwritten, and the gradient flows on."""
    z = torch.randn(2, 3, 20, device=DEVICE, requires_grad=True)
    ids, cu = torch.arange(6, device=DEVICE), torch.tensor([0, 3, 6], device=DEVICE)
    kwargs = dict(token_ids=ids, cu_seqlens=cu, advantages=torch.tensor([1.0, -1.0], device=DEVICE))
    got, want = (
        torch.autograd.grad(uk.grpo_loss((z * 2.0).flatten(0, 1), backend=face, **kwargs).loss, z)[0] for face in FACES
    )
    torch.testing.assert_close(got, want)


def test_in_place_overwriting_is_told_to_autograd() -> None:
    """Something that saved the logits before must raise, not use the gradient in their place."""
    z = torch.randn(3, 20, device=DEVICE, requires_grad=True)
    logits = z * 1.0
    other = logits.square().sum()
    ids, cu = torch.tensor([1, 2, 3], device=DEVICE), torch.tensor([0, 3], device=DEVICE)
    out = uk.grpo_loss(logits, ids, cu, advantages=torch.ones(1, device=DEVICE), backend="triton")
    with pytest.raises(RuntimeError):
        (other + out.loss).backward()


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("coupling", COUPLINGS)
def test_loss_of_a_wider_matrix(inplace: bool, coupling: str) -> None:
    """Logits and gradient have strides of their own; in place, the columns beside the slice are left alone."""
    wide = torch.randn(4, 64, device=DEVICE, requires_grad=True)
    ids, cu = torch.tensor([0, 39, 5, 7], device=DEVICE), torch.tensor([0, 1, 4], device=DEVICE)
    kwargs = dict(token_ids=ids, cu_seqlens=cu, advantages=torch.tensor([1.0, -2.0], device=DEVICE))
    kwargs |= dict(config=COUPLINGS[coupling])
    whole = wide * 1.0
    before = whole.detach().clone()
    (grad,) = torch.autograd.grad(uk.grpo_loss(whole[:, 3:43], inplace=inplace, backend="triton", **kwargs).loss, wide)
    (want,) = torch.autograd.grad(uk.grpo_loss(wide[:, 3:43], inplace=False, backend="reference", **kwargs).loss, wide)
    torch.testing.assert_close(grad, want)
    untouched = torch.ones(64, dtype=torch.bool, device=DEVICE)
    untouched[3:43] = not inplace
    assert torch.equal(whole.detach()[:, untouched], before[:, untouched])


@pytest.mark.parametrize("op", ["selective_logprob", "linear_logprob", "linear_ce", *NAMES])
@pytest.mark.parametrize("coupling", COUPLINGS)
def test_compiled_equals_eager(make_case: Any, op: str, coupling: str) -> None:
    """The doors trace without a graph break, backward pass included."""
    if "grpo" not in op and coupling != "row":
        pytest.skip("no rows to couple")
    names = {"selective_logprob": ["logits"], "grpo_loss": ["logits"], "policy_loss": ["logp"]}
    case = on_device(make_case(seed=20)).to(torch.float32)
    kwargs: dict[str, Any] = {} if op == "policy_loss" else dict(token_ids=case.token_ids)
    if "loss" in op:
        kwargs |= dict(cu_seqlens=case.cu_seqlens, config=COUPLINGS[coupling], **case.rows)
    if op == "policy_loss":
        kwargs["entropy"] = torch.linspace(0, 1, len(case.token_ids), device=DEVICE)
    if op == "linear_ce":
        kwargs["row_weight"] = torch.linspace(0, 1, len(case.token_ids), device=DEVICE)
    case_op = op if "loss" in op else "grpo_loss"

    def loss(*x: Tensor) -> Tensor:
        named = dict(zip(names.get(op, ["hidden", "weight", "bias"]), (t * 1.5 for t in x), strict=True))
        out = getattr(uk, op)(**named, **kwargs, backend="triton")
        return (out[0] - out[1]).sum() if "logprob" in op else out[0] * 0.7

    def outcome(function: Any) -> list[Tensor]:
        inputs = case.arguments(case_op)[0]
        if op in ("linear_logprob", "linear_ce"):
            inputs = tuple(getattr(case, n).clone().requires_grad_() for n in ("hidden", "weight", "bias"))
        value = function(*inputs)
        return [value.detach(), *torch.autograd.grad(value, inputs)]

    torch.compiler.reset()  # the cases share one function, whose recompilations are counted
    eager = outcome(loss)  # and the face is imported outside of the trace
    torch.testing.assert_close(outcome(torch.compile(loss, fullgraph=True, backend="aot_eager")), eager)


def test_no_rows(make_case: Any) -> None:
    case = on_device(make_case(lengths=(0, 0), groups=(2,), masked=False)).to(torch.float32)
    for op in NAMES:
        for config in COUPLINGS.values():
            out, grads = run(case, op, config, "triton")
            assert out.loss.item() == 0 and bool((out.metrics == 0).all())
            assert all(not bool(g.any()) for g in grads)


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_same_bits_twice(make_case: Any, coupling: str) -> None:
    case = on_device(make_case(seed=6)).to(torch.float32)
    one, two = (run(case, "grpo_loss", COUPLINGS[coupling], "triton") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip((*one[0], *one[1]), (*two[0], *two[1]), strict=True))
