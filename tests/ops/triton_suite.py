"""The Triton faces against fp64 truth, held to twice the error of eager torch in the same dtype.

Not collected by itself: test_triton_interpreter.py runs it in a process of its own, where TRITON_INTERPRET is set
before triton is imported, so that the session that compiles kernels ahead of time keeps the real compiler. With a GPU
it is run there, too, without the interpreter.
"""

from __future__ import annotations

import os
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
import triton.language as tl
import univg_kernels as uk
from torch import Tensor
from triton.runtime import interpreter
from univg_kernels import _linear_head

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
FACES = ("triton", "reference")
DTYPES = [torch.float32, torch.bfloat16]
SHAPES = {
    "empty response, group of one, odd vocabulary": dict(lengths=(3, 0, 5, 1, 2), groups=(3, 1, 1), vocab=51),
    "one row, one token to choose": dict(lengths=(1,), groups=(1,), vocab=1),
    "vocabulary of several tiles, not a multiple": dict(lengths=(2, 1), groups=(2,), vocab=16500),
    "several chunks of the linear head": dict(lengths=(20, 12, 8), groups=(3,), vocab=40),
}
NAMES = {"grpo_loss": ["logits"], "linear_grpo_loss": ["hidden", "weight", "bias"], "policy_loss": ["logp"]}


@pytest.fixture(autouse=True)
def rounding_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter cuts fp32 off to bf16; compiled kernels and torch round to nearest even."""
    if DEVICE == "cuda":
        return

    def convert(data: np.ndarray, source: tl.dtype, target: tl.dtype, mode: Any) -> np.ndarray:
        if source == tl.float32 and target == tl.bfloat16:
            return torch.from_numpy(data.view(np.float32)).bfloat16().view(torch.uint16).numpy()
        return original(data, source, target, mode)

    original = interpreter._convert_float
    monkeypatch.setattr(interpreter, "_convert_float", convert)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_linear_head, "default_chunk_rows", lambda num_rows, vocab: 16)


def moved(x: Any) -> Any:
    if isinstance(x, dict):
        return {k: moved(v) for k, v in x.items()}
    return x.to(DEVICE) if isinstance(x, Tensor) else x


def on_device(case: Any) -> Any:
    return replace(case, **{f.name: moved(getattr(case, f.name)) for f in fields(case)})


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
def test_policy_losses(make_case, assert_no_worse, op: str, shape: str, dtype: torch.dtype) -> None:
    case = make_case(seed=11, temperature=0.9, **SHAPES[shape])
    check(case, op, uk.GrpoConfig(temperature=0.9), dtype, assert_no_worse)


CONFIGS = {
    "no KL": uk.GrpoConfig(beta=0.0),
    "two-sided clip": uk.GrpoConfig(delta=1.25, epsilon_high=0.4, beta=0.3, temperature=0.7),
    "phi below 0": uk.GrpoConfig(difficulty="log"),
    "statistics of the batch": uk.GrpoConfig(scale_rewards="batch", normalize_difficulty=True),
    "power, centred only": uk.GrpoConfig(difficulty="power", difficulty_power=2.0, scale_rewards="none"),
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("op", ["grpo_loss", "policy_loss"])
def test_settings(make_case, assert_no_worse, op: str, name: str) -> None:
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
def test_absent_and_given_arguments(make_case, assert_no_worse, op: str, case: dict[str, Any]) -> None:
    check(make_case(seed=4, **case), op, uk.GrpoConfig(), torch.float32, assert_no_worse)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("op", ["selective_logprob", "linear_logprob", "linear_ce"])
def test_heads(make_case, assert_no_worse, op: str, shape: str, dtype: torch.dtype) -> None:
    base = on_device(make_case(seed=12, **SHAPES[shape])).to(dtype)
    n = len(base.token_ids)
    upstream = torch.linspace(-1, 2, n, device=DEVICE)
    upstream[n // 2] = 0
    row_weight = torch.where(torch.arange(n, device=DEVICE) % 3 == 1, 0.0, 1.0 / n)

    def outcome(case: Any, backend: uk.Backend) -> list[Tensor]:
        names = ["logits"] if op == "selective_logprob" else ["hidden", "weight", "bias"]
        inputs = [getattr(case, name).clone().requires_grad_() for name in names]
        options = dict(row_weight=row_weight) if op == "linear_ce" else dict(temperature=1.3)
        first, second = getattr(uk, op)(
            token_ids=case.token_ids, backend=backend, **dict(zip(names, inputs, strict=True)), **options
        )
        both = (upstream * first).sum() + (upstream * second).sum()
        return [first.detach(), second.detach(), *torch.autograd.grad(first if op == "linear_ce" else both, inputs)]

    truth = outcome(base.to(torch.float64), "reference")
    results = zip(outcome(base, "triton"), outcome(base, "reference"), truth, strict=True)
    for i, (got, eager, true) in enumerate(results):
        assert got.dtype == eager.dtype
        assert_no_worse(f"{op} result {i}", got, eager, true, dtype)


def test_masked_rows_are_not_read_and_get_zeros(make_case) -> None:
    """NaN in rows that do not count reaches nothing; in place, their gradient is written over the NaN."""
    case = on_device(make_case(seed=5)).to(torch.float32)
    mask = case.rows["mask"]
    kwargs = dict(cu_seqlens=case.cu_seqlens, token_ids=case.token_ids, backend="triton", **case.rows)
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


@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
def test_logprob_of_extreme_logits(scale: float, assert_no_worse) -> None:
    """Rows far above and below the range of exp, and a maximum that keeps rising along the row."""
    z = (torch.randn(4, 5000, generator=torch.Generator().manual_seed(1)) * scale).to(DEVICE)
    z[1] = torch.linspace(-400, 400, 5000)
    z[2] -= 1e4
    ids = torch.tensor([0, 4999, 17, 4096], device=DEVICE)
    got, eager, true = (
        uk.selective_logprob(x, ids, backend=b) for x, b in ((z, "triton"), (z, "reference"), (z.double(), "reference"))
    )
    for name, x, e, t in zip(("logp", "entropy"), got, eager, true, strict=True):
        assert_no_worse(name, x, e, t, torch.float32)


def test_nan_logits_and_ids_out_of_range_give_nan() -> None:
    z = torch.zeros(3, 40, device=DEVICE)
    z[1, 30] = torch.nan
    logp, entropy = uk.selective_logprob(z, torch.tensor([0, 0, 39], device=DEVICE), backend="triton")
    assert logp.isnan().tolist() == entropy.isnan().tolist() == [False, True, False]


def test_rows_of_a_wider_matrix() -> None:
    """Logits may be a slice: rows apart by more than V."""
    wide = torch.randn(5, 64, device=DEVICE)
    ids = torch.arange(5, device=DEVICE)
    got = uk.selective_logprob(wide[:, 3:43], ids, backend="triton")
    torch.testing.assert_close(got, uk.selective_logprob(wide[:, 3:43], ids, backend="reference"))


@pytest.mark.parametrize("inplace", [False, True])
def test_loss_of_a_wider_matrix(inplace: bool) -> None:
    """Logits and gradient have strides of their own; in place, the columns beside the slice are left alone."""
    wide = torch.randn(4, 64, device=DEVICE, requires_grad=True)
    ids, cu = torch.tensor([0, 39, 5, 7], device=DEVICE), torch.tensor([0, 1, 4], device=DEVICE)
    kwargs = dict(token_ids=ids, cu_seqlens=cu, advantages=torch.tensor([1.0, -2.0], device=DEVICE))
    whole = wide * 1.0
    before = whole.detach().clone()
    logits = whole[:, 3:43]
    (grad,) = torch.autograd.grad(uk.grpo_loss(logits, inplace=inplace, backend="triton", **kwargs).loss, logits)
    (want,) = torch.autograd.grad(uk.grpo_loss(logits := wide[:, 3:43], backend="reference", **kwargs).loss, logits)
    torch.testing.assert_close(grad, want)
    untouched = torch.ones(64, dtype=torch.bool, device=DEVICE)
    untouched[3:43] = not inplace
    assert torch.equal(whole.detach()[:, untouched], before[:, untouched])


def test_registered_ops_keep_their_promises() -> None:
    """Schemas tell the truth about what is written; fakes have the shapes of the real thing; autograd agrees."""
    from univg_kernels.box_iou.triton_impl import triton_box_iou
    from univg_kernels.difficulty_weight.triton_impl import triton_difficulty
    from univg_kernels.group_advantage.triton_impl import triton_group_advantage
    from univg_kernels.grpo_loss.triton_impl import triton_grpo_rows, triton_grpo_rows_
    from univg_kernels.linear_ce.triton_impl import triton_ce_rows_
    from univg_kernels.policy_loss.triton_impl import triton_policy_rows
    from univg_kernels.selective_logprob.triton_impl import triton_logprob, triton_logprob_backward_

    z, ids = torch.randn(3, 20, device=DEVICE), torch.tensor([1, 2, 3], device=DEVICE)
    row, two = torch.ones(3, device=DEVICE), torch.ones(2, device=DEVICE)
    torch.library.opcheck(triton_logprob, (z.clone().requires_grad_(), ids, 0.8))
    torch.library.opcheck(triton_logprob_backward_, (z.clone(), ids, row * 5, row, row, row, 0.8))
    torch.library.opcheck(triton_ce_rows_, (z.clone(), ids, row))
    cu, partials = torch.tensor([0, 1, 3], device=DEVICE), torch.empty(8, 3, device=DEVICE)
    tensors = [cu, None, None, None, two, two, None, -row, None, None]
    settings = (tensors, [2.0, 1e-4, 1.0, 0.2, 0.2, 2.0, 0.0], "group", "exp", "grpo")
    torch.library.opcheck(triton_grpo_rows, (z, z.clone(), ids, row.clone(), partials, 0, 0.9, *settings))
    torch.library.opcheck(triton_grpo_rows_, (z.clone(), ids, row.clone(), partials, 0, 0.9, *settings))
    torch.library.opcheck(triton_policy_rows, (-row, None, row.clone(), row.clone(), partials, *settings))
    torch.library.opcheck(triton_group_advantage, (two, two, cu.clamp(max=2), "batch", 1e-4, "exp", 1.0))
    torch.library.opcheck(triton_difficulty, (two, "power", 2.0))
    boxes = torch.tensor([[0, 0, 2, 2], [1, 1, 3, 3]], dtype=torch.float32, device=DEVICE)
    torch.library.opcheck(triton_box_iou, (boxes, boxes, True, True, False))


@pytest.mark.parametrize("op", ["selective_logprob", "linear_logprob", "linear_ce", *NAMES])
def test_compiled_equals_eager(make_case, op: str) -> None:
    """The doors trace without a graph break, backward pass included."""
    names = {"selective_logprob": ["logits"], "grpo_loss": ["logits"], "policy_loss": ["logp"]}
    case = on_device(make_case(seed=20)).to(torch.float32)
    kwargs: dict[str, Any] = {} if op == "policy_loss" else dict(token_ids=case.token_ids)
    if "loss" in op:
        kwargs |= dict(cu_seqlens=case.cu_seqlens, **case.rows)
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

    eager = outcome(loss)  # and the face is imported outside of the trace
    torch.testing.assert_close(outcome(torch.compile(loss, fullgraph=True, backend="aot_eager")), eager)


@pytest.mark.parametrize("kind", ["exp", "power", "log", "none"])
@pytest.mark.parametrize("normalize", [False, True])
def test_difficulty_weight(kind: str, normalize: bool) -> None:
    m = torch.linspace(0, 1, 300, device=DEVICE)
    got, want = (
        uk.difficulty_weight(m, kind=kind, power=1.5, normalize=normalize, backend=b) for b in ("triton", "reference")
    )
    torch.testing.assert_close(got, want)
    assert bool((got < 0).any()) == (kind == "log")


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_group_advantage(scale: str, dtype: torch.dtype) -> None:
    """Groups of one, of none, of more than a block, and of equal rewards, which give 0 exactly."""
    g = torch.Generator().manual_seed(2)
    sizes = [4, 1, 0, 150, 8]
    rewards, accuracy = (torch.rand(sum(sizes), generator=g, dtype=dtype).to(DEVICE) for _ in range(2))
    rewards[-8:] = 0.1
    cu = torch.tensor([0, *sizes], device=DEVICE).cumsum(0)
    config = uk.GrpoConfig(scale_rewards=scale, normalize_difficulty=True)
    got, want = (
        uk.group_advantage(rewards, cu, accuracy=accuracy, config=config, backend=b) for b in ("triton", "reference")
    )
    for name, x, y in zip(got._fields, got, want, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")
    assert bool((got.advantages[-8:] == 0).all())
    alone = uk.group_advantage(rewards, cu, config=config, backend="triton")
    assert bool((alone.phi == 1).all()) and bool((alone.accuracy_mean == 0).all())


@pytest.mark.parametrize("mode", ["aligned", "pairwise"])
@pytest.mark.parametrize("kind, convention", [("iou", "continuous"), ("giou", "continuous"), ("iou", "univg_r1")])
def test_box_iou(mode: str, kind: str, convention: str) -> None:
    """Touching, nested, empty, inverted and apart boxes; exact in fp32 for integers this small."""
    g = torch.Generator().manual_seed(2)
    boxes = torch.randint(0, 6, (700, 4), generator=g).to(DEVICE)
    a, b = (boxes, boxes.roll(1, 0)) if mode == "aligned" else (boxes[:40], boxes[40:77])
    got, want = (
        uk.box_iou(a, b, mode=mode, kind=kind, convention=convention, backend=k) for k in ("triton", "reference")
    )
    torch.testing.assert_close(got, want)


def test_no_rows(make_case) -> None:
    case = on_device(make_case(lengths=(0, 0), groups=(2,), masked=False)).to(torch.float32)
    for op in NAMES:
        out, grads = run(case, op, uk.GrpoConfig(), "triton")
        assert out.loss.item() == 0 and bool((out.metrics == 0).all())
        assert all(not bool(g.any()) for g in grads)


def test_same_bits_twice(make_case) -> None:
    case = on_device(make_case(seed=6)).to(torch.float32)
    one, two = (run(case, "grpo_loss", uk.GrpoConfig(), "triton") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip((*one[0], *one[1]), (*two[0], *two[1]), strict=True))


def test_fp64_is_refused() -> None:
    z = torch.zeros(1, 4, dtype=torch.float64, device=DEVICE)
    with pytest.raises(ValueError, match="float64"):
        uk.selective_logprob(z, torch.zeros(1, dtype=torch.int64, device=DEVICE), backend="triton")
