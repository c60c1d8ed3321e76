"""The specification itself, against formulas written out token by token and against finite differences."""

from __future__ import annotations

import math

import pytest
import torch
import univg_kernels as uk
from torch import Tensor
from torch.autograd import gradcheck

CONFIGS = [
    uk.GrpoConfig(),
    uk.GrpoConfig(beta=0.0),
    uk.GrpoConfig(delta=1.5, epsilon_low=0.1, epsilon_high=0.4, beta=0.3, temperature=0.7),
    uk.GrpoConfig(difficulty="log", scale_rewards="batch"),
    uk.GrpoConfig(difficulty="power", difficulty_power=2.0, scale_rewards="none", normalize_difficulty=True),
]


def written_out(case, config: uk.GrpoConfig, logits: Tensor, num_responses: float) -> Tensor:
    """The loss by plain loops over groups, responses and tokens. Shares no line with the package."""
    rows, cu = case.rows, case.cu_seqlens.tolist()
    b = len(cu) - 1
    advantages, phis = [0.0] * b, [1.0] * b
    if "advantages" in rows:
        advantages, phis = rows["advantages"].tolist(), rows["phi"].tolist()
    else:
        r, acc, cg = rows["rewards"].tolist(), rows["accuracy"].tolist(), rows["cu_groups"].tolist()

        def spread(values: list[float]) -> float:
            m = sum(values) / len(values)
            return math.sqrt(sum((v - m) ** 2 for v in values) / (len(values) - 1)) if len(values) > 1 else 0.0

        weights = []
        for start, stop in zip(cg[:-1], cg[1:], strict=True):
            m = sum(acc[start:stop]) / (stop - start)
            weights.append(
                {
                    "exp": math.exp(1 - m),
                    "power": (1.05 - m) ** config.difficulty_power,
                    "log": -math.log(0.02 + m),
                    "none": 1.0,
                }[config.difficulty]
            )
        if config.normalize_difficulty:
            weights = [w * len(weights) / sum(weights) for w in weights]
        for k, (start, stop) in enumerate(zip(cg[:-1], cg[1:], strict=True)):
            members = r[start:stop]
            std = {"group": spread(members), "batch": spread(r)}.get(config.scale_rewards)
            for i in range(start, stop):
                centred = r[i] - sum(members) / len(members)
                advantages[i] = centred if std is None else centred / (std + config.advantage_eps)
                phis[i] = weights[k]
    total = logits.new_zeros(())
    for i in range(b):
        tokens = [t for t in range(cu[i], cu[i + 1]) if "mask" not in rows or bool(rows["mask"][t])]
        for t in tokens:
            z = logits[t] / config.temperature
            logp = z[case.token_ids[t]] - z.exp().sum().log()
            old = rows["old_logp"][t] if "old_logp" in rows else logp.detach()
            ratio = (logp - old).exp()
            free = ratio if config.delta is None else ratio.clamp(max=config.delta)
            clipped = ratio.clamp(1 - config.epsilon_low, 1 + config.epsilon_high)
            both = torch.stack([free * advantages[i], clipped * advantages[i]])
            term = -phis[i] * both.min()
            if config.beta and "ref_logp" in rows:
                d = rows["ref_logp"][t] - logp
                term = term + config.beta * (d.exp() - d - 1)
            total = total + term / len(tokens) / num_responses
    return total


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("options", [{}, {"old": False}, {"given": True, "masked": False}, {"ref": False}])
def test_loss_and_gradient_equal_the_formula(make_case, config: uk.GrpoConfig, options: dict) -> None:
    case = make_case(seed=3, temperature=config.temperature, **options)
    (logits,), kwargs = case.arguments("grpo_loss")
    out = uk.grpo_loss(logits, config=config, denominator=11.0, backend="reference", **kwargs)
    (grad,) = torch.autograd.grad(out.loss, logits)
    same = logits.detach().clone().requires_grad_()
    want = written_out(case, config, same, 11.0)
    (want_grad,) = torch.autograd.grad(want, same)
    assert abs(out.loss.item() - want.item()) <= 1e-10 * max(1.0, abs(want.item()))
    assert (grad - want_grad).abs().max() <= 1e-10 * want_grad.abs().max()


@pytest.mark.parametrize("config", CONFIGS[:3])
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


@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_linear_ce_is_weighted_cross_entropy(make_case, backend: uk.Backend) -> None:
    case = make_case(seed=7)
    inputs = [getattr(case, n).clone().requires_grad_() for n in ("hidden", "weight", "bias")]
    row_weight = torch.rand(len(case.token_ids), dtype=torch.float64)
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
