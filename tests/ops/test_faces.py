"""Every compiled face against fp64 truth, held to twice the error of eager torch in the same dtype."""

from __future__ import annotations

import pytest
import torch
import univg_kernels as uk
from torch import Tensor
from univg_kernels import _linear_head

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = {
    "mixed": dict(lengths=(3, 0, 5, 1, 4, 2), groups=(3, 1, 2), vocab=50),
    "one row, one token to choose": dict(lengths=(1,), groups=(1,), vocab=1),
    "vocabulary larger than a block, not a multiple": dict(lengths=(4, 3), groups=(2,), vocab=2500),
    "several chunks of the linear head": dict(lengths=(50, 30, 20), groups=(3,), vocab=40),
}
CONFIGS = {
    "row": uk.GrpoConfig(temperature=0.9),
    "row, capped": uk.GrpoConfig(
        loss_type="cispo", epsilon_high=2.0, temperature=0.9, softcap=6.0, kl_estimator="k2", entropy_coef=0.05
    ),
    "response": uk.GrpoConfig(
        loss_type="dapo", importance_sampling_level="sequence", temperature=0.9, epsilon_low=0.9, epsilon_high=9.0,
        use_bias_correction_kl=True, kl_estimator="k1",
    ),
    "batch": uk.GrpoConfig(loss_type="sapo", temperature=0.9, top_entropy_quantile=0.99, entropy_coef=-0.05),
}  # fmt: skip
NAMES = {"grpo_loss": ["logits"], "linear_grpo_loss": ["hidden", "weight", "bias"], "policy_loss": ["logp"]}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_linear_head, "default_chunk_rows", lambda num_rows, vocab: 32)


def run(case, op: str, config: uk.GrpoConfig, backend: str) -> tuple[uk.GrpoOutput, tuple[Tensor, ...]]:
    inputs, kwargs = case.arguments(op)
    named = dict(zip(NAMES[op], inputs, strict=True))
    out = getattr(uk, op)(**named, config=config, denominator=3.5, backend=backend, **kwargs)
    # A power of two scales a half-precision gradient without a second rounding.
    return out, torch.autograd.grad(out.loss * 2.0, inputs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=list(CONFIGS))
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("op", NAMES)
def test_policy_losses(
    make_case, assert_no_worse, op: str, shape: str, config: uk.GrpoConfig, dtype: torch.dtype
) -> None:
    case = make_case(seed=11, temperature=0.9, **SHAPES[shape]).to(dtype)
    truth, true_grads = run(case.to(torch.float64), op, config, "reference")
    eager, eager_grads = run(case, op, config, "reference")
    got, grads = run(case, op, config, "cpp")
    assert got.loss.dtype == got.metrics.dtype == got.logp.dtype == torch.float32
    for field in ("loss", "logp"):
        assert_no_worse(field, getattr(got, field), getattr(eager, field), getattr(truth, field), dtype)
    for i, name in enumerate(uk.METRICS):
        assert_no_worse(name, got.metrics[i], eager.metrics[i], truth.metrics[i], dtype)
    for name, x, e, t in zip(NAMES[op], grads, eager_grads, true_grads, strict=True):
        assert x.dtype == dtype
        assert_no_worse(f"d {name}", x, e, t, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("op", ["selective_logprob", "linear_logprob", "linear_ce"])
def test_heads(make_case, assert_no_worse, op: str, shape: str, dtype: torch.dtype) -> None:
    base = make_case(seed=12, **SHAPES[shape]).to(dtype)
    n = len(base.token_ids)
    upstream = torch.linspace(-1, 2, n)
    row_weight = torch.where(torch.arange(n) % 3 == 1, 0.0, 1.0 / n)

    def outcome(case, backend: str) -> list[Tensor]:
        names = ["logits"] if op == "selective_logprob" else ["hidden", "weight", "bias"]
        inputs = [getattr(case, name).clone().requires_grad_() for name in names]
        options = dict(row_weight=row_weight) if op == "linear_ce" else dict(temperature=1.3)
        named = dict(zip(names, inputs, strict=True))
        first, second = getattr(uk, op)(token_ids=case.token_ids, backend=backend, **named, **options)
        both = (upstream * first).sum() + (upstream.flip(0) * second).sum()
        total = first if op == "linear_ce" else both
        return [first.detach(), second.detach(), *torch.autograd.grad(total, inputs)]

    truth = outcome(base.to(torch.float64), "reference")
    results = zip(outcome(base, "cpp"), outcome(base, "reference"), truth, strict=True)
    for i, (got, eager, true) in enumerate(results):
        assert got.dtype == eager.dtype
        assert_no_worse(f"{op} result {i}", got, eager, true, dtype)


@pytest.mark.parametrize("delta", [None, 1.25])
@pytest.mark.parametrize("log_ratio", [-0.6, -0.05, 0.0, 0.05, 0.2, 0.6])
@pytest.mark.parametrize("advantage", [-1.5, 0.0, 1.5])
@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_sign_of_the_gradient(advantage: float, log_ratio: float, delta: float | None, backend: uk.Backend) -> None:
    """A good token is pushed up, a bad one down, and a clipped one not at all."""
    logp = torch.tensor([-1.0], requires_grad=True)
    config = uk.GrpoConfig(delta=delta, beta=0.0)
    out = uk.policy_loss(
        logp,
        torch.tensor([0, 1]),
        advantages=torch.tensor([advantage]),
        old_logp=torch.tensor([-1.0 - log_ratio]),
        config=config,
        backend=backend,
    )
    out.loss.backward()
    ratio = torch.tensor(log_ratio).exp().item()
    clipped = (
        (advantage > 0 and ratio > 1.2)
        or (advantage < 0 and ratio < 0.8)
        or (advantage < 0 and delta is not None and ratio > delta)
    )
    want = 0.0 if clipped else -advantage * ratio
    assert logp.grad is not None and logp.grad.item() == pytest.approx(want, rel=1e-5, abs=0)
    flags = uk.summarize(out.metrics)
    assert flags["clip_ratio/low_mean"] == float(advantage < 0 and ratio < 0.8)
    assert flags["clip_ratio/high_mean"] == float(advantage > 0 and ratio > 1.2)


@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_banned_tokens(backend: uk.Backend) -> None:
    """Logits of -inf (banned tokens) have probability 0, no entropy and no gradient, and spoil nothing."""
    z = torch.randn(3, 1500, generator=torch.Generator().manual_seed(0))
    z[:, 1:1400] = -torch.inf
    z.requires_grad_()
    ids = torch.tensor([0, 1400, 1499])
    logp, entropy = uk.selective_logprob(z, ids, backend=backend)
    (logp.sum() + entropy.sum()).backward()
    keep = torch.cat([torch.zeros(1, dtype=torch.long), torch.arange(1400, 1500)])
    small = z.detach()[:, keep].requires_grad_()
    small_logp, small_entropy = uk.selective_logprob(small, torch.searchsorted(keep, ids), backend="reference")
    (small_logp.sum() + small_entropy.sum()).backward()
    torch.testing.assert_close((logp, entropy), (small_logp, small_entropy))
    assert z.grad is not None and bool((z.grad[:, 1:1400] == 0).all())
    torch.testing.assert_close(z.grad[:, keep], small.grad)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
def test_logprob_of_extreme_logits(scale: float, assert_no_worse) -> None:
    """Rows far above and below the range of exp, and a maximum that keeps rising along the row."""
    g = torch.Generator().manual_seed(1)
    z = torch.randn(4, 5000, generator=g) * scale
    z[1] = torch.linspace(-400, 400, 5000)
    z[2] -= 1e4
    ids = torch.tensor([0, 4999, 17, 4096])
    got, eager, true = (
        uk.selective_logprob(x, ids, backend=b) for x, b in ((z, "cpp"), (z, "reference"), (z.double(), "reference"))
    )
    for name, x, e, t in zip(("logp", "entropy"), got, eager, true, strict=True):
        assert_no_worse(name, x, e, t, torch.float32)


@pytest.mark.parametrize("kind", ["iou", "giou"])
@pytest.mark.parametrize("mode", ["aligned", "pairwise"])
def test_box_iou_counts_cells(mode: str, kind: str) -> None:
    """Against cells counted on a grid; touching, nested, empty and apart boxes are all among them."""
    g = torch.Generator().manual_seed(2)
    corners = torch.randint(0, 9, (40, 2, 2), generator=g).sort(dim=1).values
    boxes = corners.reshape(40, 4)  # x1, y1, x2, y2
    a, b = (boxes, boxes.roll(1, 0)) if mode == "aligned" else (boxes[:12], boxes[12:])

    def cells(box: list[int]) -> set[tuple[int, int]]:
        return {(x, y) for x in range(box[0], box[2]) for y in range(box[1], box[3])}

    def measure(p: list[int], q: list[int]) -> float:
        both, any_ = len(cells(p) & cells(q)), len(cells(p) | cells(q))
        iou = both / any_ if any_ else 0.0
        hull = len(cells([min(p[0], q[0]), min(p[1], q[1]), max(p[2], q[2]), max(p[3], q[3])]))
        return iou if kind == "iou" or not hull else iou - (hull - any_) / hull

    pairs = (
        [measure(p, q) for p, q in zip(a.tolist(), b.tolist(), strict=True)]
        if mode == "aligned"
        else [[measure(p, q) for q in b.tolist()] for p in a.tolist()]
    )
    for backend in ("reference", "cpp"):
        got = uk.box_iou(a, b, mode=mode, kind=kind, backend=backend)
        torch.testing.assert_close(got, torch.tensor(pairs))


def test_result_does_not_depend_on_the_number_of_threads(make_case) -> None:
    case = make_case(seed=13, lengths=(40, 30), groups=(2,), vocab=3000).to(torch.float32)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            out, grads = run(case, "grpo_loss", uk.GrpoConfig(), "cpp")
            results.append([*out, *grads])
    finally:
        torch.set_num_threads(before)
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_denominator_may_lie_on_the_device(make_case, backend: uk.Backend) -> None:
    """A count summed over ranks is a tensor: no copy to the host is asked for."""
    case = make_case(seed=14)
    (logits,), kwargs = case.arguments("grpo_loss")
    number, tensor = (uk.grpo_loss(logits, backend=backend, denominator=n, **kwargs).loss for n in (7, torch.tensor(7)))
    default = uk.grpo_loss(logits, backend=backend, **kwargs).loss
    torch.testing.assert_close(number, tensor)
    torch.testing.assert_close(default * (len(case.cu_seqlens) - 1), number * 7)
