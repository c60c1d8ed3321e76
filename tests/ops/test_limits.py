"""Numbers at the edge of fp32, and sums that nothing goes into: every face does as the specification."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import univg_kernels as uk
from ops.draws import PAIRS
from torch import Tensor


@pytest.fixture(params=["cpp"])  # triton_suite_edges.py puts "triton" in its place
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


def loss_and_gradient(logp: Tensor, backend: str, **arguments: Any) -> tuple[uk.GrpoOutput, Tensor]:
    leaf = logp.clone().requires_grad_()
    out = uk.policy_loss(leaf, backend=backend, **arguments)
    return out, torch.autograd.grad(out.loss, leaf)[0]


@pytest.mark.parametrize("far", [95.0, 1e4])
@pytest.mark.parametrize(("loss", "level"), PAIRS)
def test_ratios_beyond_fp32(backend: str, loss: str, level: str, far: float) -> None:
    """exp(95) is infinite in fp32, exp(-1e4) is 0: neither makes a NaN of a gradient, nor the faces differ."""
    more = dict(loss_type=loss, importance_sampling_level=level, max_completion_length=7)
    for settings in (dict(beta=0.0), dict(beta=0.1, kl_estimator="k3", use_bias_correction_kl=True)):
        for sign in (1.0, -1.0):
            for step in ([far, 0.1], [-far, 0.1], [far, -far]):
                logp = torch.tensor([-1.0, -2.0])
                arguments: dict[str, Any] = dict(
                    cu_seqlens=torch.tensor([0, 2]), advantages=torch.tensor([sign]), ref_logp=logp - 0.3,
                    old_logp=logp - torch.tensor(step), config=uk.GrpoConfig(**more, **settings),
                )  # fmt: skip
                want, want_grad = loss_and_gradient(logp, "reference", **arguments)
                got, grad = loss_and_gradient(logp, backend, **arguments)
                torch.testing.assert_close(tuple(got), tuple(want), rtol=1e-4, atol=1e-6)
                if loss == "gmpo" and got.loss.isinf():  # its mean log-ratio has no bound where A < 0
                    continue
                torch.testing.assert_close(grad, want_grad, rtol=1e-4, atol=1e-6)
                assert got.loss.isfinite() and grad.isfinite().all(), (settings, sign, step)


CONFIGS = {
    "row": uk.GrpoConfig(entropy_coef=0.1, entropy_aggregation="loss"),
    "response": uk.GrpoConfig(loss_type="gmpo", entropy_coef=0.1),
    "batch": uk.GrpoConfig(importance_sampling_level="sequence", entropy_coef=0.1, top_entropy_quantile=0.5),
}


@pytest.mark.parametrize("face", ["reference", "compiled"])
@pytest.mark.parametrize("coupling", CONFIGS)
@pytest.mark.parametrize("op", ["grpo_loss", "linear_grpo_loss", "policy_loss"])
def test_a_denominator_of_nothing(make_case: Any, backend: str, face: str, op: str, coupling: str) -> None:
    """The number of rows that count, of a micro-batch that is all masked: loss and gradients are 0, not 0/0."""
    case = make_case(seed=3).to(torch.float32)
    inputs, kwargs = case.arguments(op)
    kwargs |= dict(mask=torch.zeros_like(case.rows["mask"]), config=CONFIGS[coupling])
    kwargs["denominator"] = kwargs["mask"].sum()
    if op == "policy_loss":
        kwargs["entropy"] = inputs[0].detach() * -2
    out = getattr(uk, op)(*inputs[:2], backend=backend if face == "compiled" else face, **kwargs)
    grads = torch.autograd.grad(out.loss, inputs[:2])
    assert out.loss.item() == 0 and not any(g.any() for g in grads) and not out.metrics.any()
    some = dict(kwargs, mask=case.rows["mask"])
    assert not getattr(uk, op)(*inputs[:2], backend=backend if face == "compiled" else face, **some).loss.isfinite()


OFFSETS = {
    "ends early": [0, 2, 4],
    "ends late": [0, 3, 9],
    "begins late": [1, 3, 6],
    "falls": [0, 5, 2, 6],
    "falls at the end": [0, 6, 3],
    "far below": [-(2**40), 3, 6],
}


@pytest.mark.parametrize("wrong", OFFSETS)
@pytest.mark.parametrize("coupling", ["row", "response"])
def test_wrong_offsets_that_a_compiled_call_meets(backend: str, coupling: str, wrong: str) -> None:
    """While torch.compile traces there are no values to look at: loss and gradient are NaN, as on a GPU."""
    right, n = torch.tensor([0, 2, 6]), 6

    @torch.compile(fullgraph=True, backend="aot_eager", dynamic=True)
    def loss(logp: Tensor, rewards: Tensor, cu_seqlens: Tensor, cu_groups: Tensor) -> Tensor:
        more = dict(config=CONFIGS[coupling], entropy=-logp.detach(), rewards=rewards, cu_groups=cu_groups)
        return uk.policy_loss(logp, cu_seqlens, backend=backend, **more).loss

    # The interpreter's face is no device's own, so that it is imported by its first call: outside of the trace.
    uk.policy_loss(torch.zeros(n), right, advantages=torch.ones(2), backend=backend)
    bad = torch.tensor(OFFSETS[wrong])
    for cu_seqlens, cu_groups, sound in (
        (right, torch.tensor([0, 2]), True),
        (bad, torch.tensor([0, len(bad) - 1]), False),
        (torch.arange(n + 1), bad, False),
        (torch.arange(n + 1), right, True),
    ):
        logp = torch.linspace(-2, -1, n).requires_grad_()
        value = loss(logp, torch.linspace(0, 1, len(cu_seqlens) - 1), cu_seqlens, cu_groups)
        (gradient,) = torch.autograd.grad(value, logp)
        assert value.isfinite() == sound and bool(gradient.isfinite().all()) == sound
        assert sound or gradient.isnan().all()
