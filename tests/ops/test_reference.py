"""The specification itself, against formulas written out token by token and against finite differences."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
import univg_kernels as uk
from ops.by_hand import loss_by_hand
from ops.draws import PAIRS, draws, make_rows
from torch import Tensor
from torch.autograd import gradcheck


@pytest.mark.parametrize(("loss", "level"), PAIRS)
def test_the_table_by_hand(loss: str, level: str) -> None:
    for number, (config, how) in enumerate(draws(loss, level, 110)):
        logp, entropy, cu, rows = make_rows(number, how)
        ours = logp.clone().requires_grad_(), entropy.clone().requires_grad_()
        out = uk.policy_loss(ours[0], torch.tensor(cu), entropy=ours[1], config=config, backend="reference", **rows)
        got = torch.autograd.grad(out.loss, ours, allow_unused=True, materialize_grads=True)
        scalars = [[x.clone().requires_grad_() for x in column] for column in (logp, entropy)]
        value, metrics = loss_by_hand(*scalars, cu, rows, config)
        leaves = scalars[0] + scalars[1]
        grads = [torch.zeros(())] * len(leaves)
        if value.requires_grad:
            grads = list(torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True))
        want = torch.tensor([x.item() for x in grads], dtype=torch.float64)
        place = f"draw {number}: {config}, {how}"

        def equal(what: str, ours: Tensor, theirs: Tensor, tolerance: float, place: str = place) -> None:
            scale = theirs.abs().max().item() if theirs.numel() else 0.0
            torch.testing.assert_close(
                ours, theirs, rtol=0, atol=tolerance * max(scale, 1.0), msg=lambda m: f"{what}, {place}\n{m}"
            )

        equal("loss", out.loss.detach(), value.detach(), 1e-10)
        equal("gradient", torch.cat(got), want, 1e-10)
        for name, metric in zip(uk.METRICS, out.metrics.tolist(), strict=True):
            # They are handed out in fp32: half a unit of its last place.
            assert metric == pytest.approx(metrics[name], rel=6e-8, abs=1e-10), f"{name}, {place}"
        assert torch.equal(out.logp, torch.where(rows["mask"], logp, 0.0)), place


SOFTMAX: list[dict[str, Any]] = [
    {},
    {"temperature": 0.7},
    {"temperature": 1.6, "logit_scale": 0.3},
    {"softcap": 2.0},
    {"temperature": 0.8, "softcap": 1.5, "logit_scale": 1.7, "vocab_size": 5},
]


def log_probs(z: Tensor, temperature=1.0, logit_scale=1.0, softcap=None, vocab_size=None) -> list[Tensor]:
    """log p of one row [V], of the columns that exist, element by element."""
    x = [z[j] * logit_scale for j in range(vocab_size or len(z))]
    x = [v if softcap is None else softcap * (v / softcap).tanh() for v in x]
    x = [v / temperature for v in x]
    norm = sum(v.exp() for v in x)
    return [v - norm.log() for v in x]


def scored(z: Tensor, ids: list[int], options: dict[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
    rows = [log_probs(row, **options) for row in z]
    return [row[t] for row, t in zip(rows, ids, strict=True)], [-sum(v.exp() * v for v in row) for row in rows]


def head(seed: int, n: int = 11, vocab: int = 7, width: int = 3) -> tuple[dict[str, Tensor], list[int]]:
    g = torch.Generator().manual_seed(seed)
    shapes = dict(hidden=(n, width), weight=(vocab, width), bias=(vocab,), ref_hidden=(n, 2), ref_weight=(vocab, 2))
    named = {k: torch.randn(*s, generator=g, dtype=torch.float64).requires_grad_() for k, s in shapes.items()}
    return named, torch.randint(0, 5, (n,), generator=g).tolist()


def assert_close(got: Any, want: Any) -> None:
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("options", SOFTMAX, ids=str)
def test_logprob_by_hand(options: dict[str, Any]) -> None:
    named, ids = head(1)
    inputs = [named[k] for k in ("hidden", "weight", "bias")]
    logits = torch.nn.functional.linear(*inputs)
    logp, entropy = scored(logits, ids, options)
    up = torch.linspace(-1, 2, len(ids), dtype=torch.float64)
    want = [torch.stack(logp), torch.stack(entropy)]
    want_grads = torch.autograd.grad(sum((up * x).sum() for x in want), inputs, retain_graph=True)
    shared = dict(token_ids=torch.tensor(ids), backend="reference", **options)
    for got in (uk.selective_logprob(logits, **shared), uk.linear_logprob(*inputs[:2], bias=inputs[2], **shared)):
        assert_close(list(got), want)
        grads = torch.autograd.grad(sum((up * x).sum() for x in got), inputs, retain_graph=True)
        assert_close(grads, want_grads)
    if "temperature" not in options:
        loss, logp_of_ce = uk.linear_ce(*inputs[:2], bias=inputs[2], row_weight=up, **shared)
        assert_close([loss, logp_of_ce], [-(up * want[0]).sum(), want[0].detach()])
        want_grads = torch.autograd.grad(-(up * want[0]).sum(), inputs, retain_graph=True)
        assert_close(torch.autograd.grad(loss, inputs), want_grads)


@pytest.mark.parametrize(("loss", "level"), PAIRS)
def test_heads_by_hand(loss: str, level: str) -> None:
    """The whole way from logits, and from hidden states of policy and reference, to the loss and its gradients."""
    for number, (config, how) in enumerate(draws(loss, level, 11)):
        options = SOFTMAX[number % len(SOFTMAX)]
        config = replace(config, **options)
        _, _, cu, rows = make_rows(number, how | {"reference": "none"})
        named, ids = head(number, cu[-1])
        inputs = [named[k] for k in ("hidden", "weight", "bias")]
        logits = torch.nn.functional.linear(*inputs)
        logp, entropy = scored(logits, ids, options)
        of_ref = scored(named["ref_hidden"] @ named["ref_weight"].T, ids, options)[0]
        rows["ref_logp"] = torch.stack(of_ref).detach() if of_ref else torch.zeros(0)
        value, metrics = loss_by_hand(logp, entropy, cu, rows, config)
        value = value + 0 * logits.sum()  # without a row that counts it hangs on nothing
        want = torch.autograd.grad(value, inputs, retain_graph=True)
        shared = dict(token_ids=torch.tensor(ids, dtype=torch.int64), cu_seqlens=torch.tensor(cu), config=config)
        one = uk.grpo_loss(logits, backend="reference", **shared, **rows)
        assert_close(torch.autograd.grad(one.loss, inputs, retain_graph=True), want)
        main_grad = torch.ones(7, 3, dtype=torch.float64)
        del rows["ref_logp"]
        two = uk.linear_grpo_loss(
            *inputs[:2],
            bias=inputs[2],
            ref_hidden=named["ref_hidden"],
            ref_weight=named["ref_weight"],
            weight_grad=main_grad,
            backend="reference",
            **shared,
            **rows,
        )
        two.loss.backward()
        assert named["weight"].grad is None
        assert_close([named["hidden"].grad, main_grad - 1, named["bias"].grad], list(want))
        for out in (one, two):
            assert_close(out.loss, value)
            for name, metric in zip(uk.METRICS, out.metrics.tolist(), strict=True):
                assert metric == pytest.approx(metrics[name], rel=1e-6, abs=1e-10), f"{name}, {config}"


@pytest.mark.parametrize("center_singletons", [True, False])
@pytest.mark.parametrize("scale_rewards", ["group", "batch", "none"])
@pytest.mark.parametrize("difficulty", ["exp", "power", "log", "none"])
def test_group_advantage_by_hand(difficulty: str, scale_rewards: str, center_singletons: bool) -> None:
    r = [0.3, 1.7, 0.2, 0.9, 0.4, 0.4, 1.1]
    accuracy = [0.1, 0.99, 0.3, 1.0, 0.6, 0.5, 1.0]
    groups = [range(3), range(3, 4), range(4, 4), range(4, 7)]

    def spread(values: list[float]) -> float:
        m = sum(values) / len(values)
        return math.sqrt(sum((v - m) ** 2 for v in values) / (len(values) - 1)) if len(values) > 1 else 0.0

    formula = {
        "exp": lambda m: math.exp(1 - m),
        "power": lambda m: (1.05 - m) ** 1.5,
        "log": lambda m: -math.log(0.02 + m),
        "none": lambda m: 1.0,
    }[difficulty]
    normalized = (True, False) if difficulty != "log" else (False,)  # whose mean may be 0
    for normalize, eps in product(normalized, (1e-4, 1e-6)):
        config = uk.GrpoConfig(
            difficulty=difficulty, difficulty_power=1.5, normalize_difficulty=normalize, scale_rewards=scale_rewards,
            advantage_eps=eps, center_singletons=center_singletons,
        )  # fmt: skip
        means = [sum(r[i] for i in g) / len(g) if g else 0.0 for g in groups]
        stds = [spread([r[i] for i in g]) if g else 0.0 for g in groups]
        accuracies = [sum(accuracy[i] for i in g) / len(g) if g else 0.0 for g in groups]
        weights = [formula(m) for m in accuracies]
        if normalize:
            weights = [w * len(groups) / sum(weights) for w in weights]
        advantages, phi = [], []
        for g, m, s, w in zip(groups, means, stds, weights, strict=True):
            raw = len(g) == 1 and not center_singletons
            divisor = {"group": 1.0 if raw else s, "batch": spread(r), "none": 1.0 - eps}[scale_rewards]
            advantages += [(r[i] - (0.0 if raw else m)) / (divisor + eps) for i in g]
            phi += [w for _ in g]
        got = uk.group_advantage(
            torch.tensor(r, dtype=torch.float64),
            torch.tensor([0, 3, 4, 4, 7]),
            accuracy=torch.tensor(accuracy, dtype=torch.float64),
            config=config,
            backend="reference",
        )
        for name, want in zip(got._fields, (advantages, phi, means, stds, accuracies), strict=True):
            torch.testing.assert_close(
                getattr(got, name),
                torch.tensor(want, dtype=torch.float64),
                rtol=1e-10,
                atol=1e-12,
                msg=lambda m, n=name: f"{n}: {m}",
            )


@pytest.mark.parametrize(
    "config",
    [
        uk.GrpoConfig(),
        uk.GrpoConfig(delta=1.5, epsilon_low=0.1, epsilon_high=0.4, beta=0.3, temperature=0.7, softcap=9.0),
        uk.GrpoConfig(loss_type="gmpo", beta=0.3, entropy_coef=0.1, difficulty="log", scale_rewards="batch"),
    ],
    ids=["grpo", "clip", "gmpo"],
)
@pytest.mark.parametrize("op", ["grpo_loss", "linear_grpo_loss", "policy_loss"])
@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_finite_differences(make_case, op: str, config: uk.GrpoConfig, backend: uk.Backend) -> None:
    case = make_case(seed=5, lengths=(2, 0, 3), groups=(3,), vocab=7, width=3, temperature=config.temperature)
    inputs, kwargs = case.arguments(op)

    def loss(*x: Tensor) -> Tensor:
        names = {"linear_grpo_loss": ("hidden", "weight", "bias"), "grpo_loss": ("logits",)}.get(op, ("logp",))
        return getattr(uk, op)(**dict(zip(names, x, strict=True)), config=config, backend=backend, **kwargs).loss

    if backend == "reference" or op == "grpo_loss":
        assert gradcheck(loss, inputs)
        return
    # These hand their gradients over once; gradcheck would ask for them again and again.
    grads = torch.autograd.grad(loss(*inputs), inputs)
    for x, grad in zip(inputs, grads, strict=True):
        step = 1e-6 * torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(0))
        ahead = loss(*(y.detach() + step if y is x else y.detach() for y in inputs))
        behind = loss(*(y.detach() - step if y is x else y.detach() for y in inputs))
        torch.testing.assert_close((ahead - behind) / 2, (grad * step).sum(), rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("backend", ["reference", "cpp"])
@pytest.mark.parametrize("op", ["selective_logprob", "linear_logprob"])
def test_logprob_finite_differences(make_case, op: str, backend: uk.Backend) -> None:
    case = make_case(seed=6, lengths=(4,), groups=(1,), vocab=9, width=3)
    names = ("logits",) if op == "selective_logprob" else ("hidden", "weight", "bias")
    inputs = [getattr(case, n).clone().requires_grad_() for n in names]

    def both(*x: Tensor) -> tuple[Tensor, Tensor]:
        named = dict(zip(names, x, strict=True))
        return getattr(uk, op)(token_ids=case.token_ids, temperature=0.8, backend=backend, **named)

    assert gradcheck(both, inputs)


@pytest.mark.parametrize("alike", [None, 0.125, 2, -1.5, 0.0])
@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_linear_ce_is_weighted_cross_entropy(make_case, backend: uk.Backend, alike: float | None) -> None:
    """Of a weight for each row, some 0, and of one for all."""
    case = make_case(seed=7)
    inputs = [getattr(case, n).clone().requires_grad_() for n in ("hidden", "weight", "bias")]
    row_weight = torch.rand(len(case.token_ids), dtype=torch.float64) if alike is None else alike
    if isinstance(row_weight, Tensor):
        row_weight[::3] = 0
    loss, logp = uk.linear_ce(
        inputs[0], inputs[1], case.token_ids, row_weight=row_weight, bias=inputs[2], backend=backend
    )
    grads = torch.autograd.grad(loss * 0.3, inputs)
    per_row = torch.nn.functional.cross_entropy(torch.nn.functional.linear(*inputs), case.token_ids, reduction="none")
    want = torch.autograd.grad((per_row * row_weight).sum() * 0.3, inputs)
    torch.testing.assert_close(loss, (per_row * row_weight).sum(), rtol=1e-12, atol=0)
    torch.testing.assert_close(logp, -per_row.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grads, want, rtol=1e-10, atol=1e-14)


def test_group_of_equal_rewards_is_exactly_zero() -> None:
    """0.1 has no exact binary form: a mean by sum and division would leave a residue that eps = 1e-4 blows up."""
    rewards = torch.tensor([0.1, 0.1, 0.1, 0.7, 1.9, 1.9])
    for backend in ("reference", "cpp"):
        got = uk.group_advantage(rewards, torch.tensor([0, 3, 4, 4, 6]), backend=backend)
        assert got.advantages.tolist() == [0.0] * 6
        assert got.std.tolist() == [0.0] * 4
        torch.testing.assert_close(got.mean, torch.tensor([0.1, 0.7, 0.0, 1.9]))
