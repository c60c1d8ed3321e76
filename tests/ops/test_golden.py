"""Published numbers of UniVG-R1's rewards, advantages, phi and KL; losses worked out on paper."""

from __future__ import annotations

import pytest
import torch
import univg_kernels as uk
from ops.draws import PAIRS

BACKENDS = ["reference", "cpp"]
GT = [100, 200, 300, 400]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("box", "iou"),
    [
        (GT, 1.0),
        ([110, 210, 310, 410], 0.822323),
        ([300, 400, 100, 200], 0.0),  # inverted
        ([299, 200, 500, 400], 0.0),  # one unit wide: none by the pixel rule
        ([298, 200, 500, 400], 2 * 200 / (200 * 200 + 202 * 200 - 2 * 200)),
    ],
)
def test_reward_iou(box: list[int], iou: float, backend: uk.Backend) -> None:
    got = uk.box_iou(torch.tensor([box]), torch.tensor([GT]), convention="univg_r1", backend=backend)
    assert got.item() == pytest.approx(iou, abs=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_advantages_of_the_published_group(backend: uk.Backend) -> None:
    accuracy = torch.tensor([1, 0.822323, 1, 1, 0, 0, 0, 1])
    rewards = accuracy + torch.tensor([1, 1, 0, 0, 0, 1, 0, 0])
    got = uk.group_advantage(rewards, torch.tensor([0, 8]), accuracy=accuracy, backend=backend)
    assert got.mean.item() == pytest.approx(0.977790, abs=1e-6)
    assert got.std.item() == pytest.approx(0.724300, abs=1e-6)
    want = torch.tensor([1.4111, 1.1658, 0.0307, 0.0307, -1.3498, 0.0307, -1.3498, 0.0307])
    torch.testing.assert_close(got.advantages, want, atol=5e-5, rtol=0)
    assert got.accuracy_mean.item() == pytest.approx(0.602790, abs=1e-6)
    torch.testing.assert_close(got.phi, torch.full((8,), 1.487668), atol=1e-6, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("kind", "want"),
    [
        ("power", [1.05, 0.85, 0.447210, 0.55, 0.25, 0.05]),
        ("exp", [2.718, 2.226, 1.487668, 1.649, 1.221, 1.0]),
        ("log", [3.912, 1.514, 0.473545, 0.654, 0.199, -0.020]),
        ("none", [1.0] * 6),
    ],
)
def test_difficulty_weight(kind: str, want: list[float], backend: uk.Backend) -> None:
    miou = torch.tensor([0, 0.2, 0.602790, 0.5, 0.8, 1.0])
    got = uk.difficulty_weight(miou, kind=kind, backend=backend)
    torch.testing.assert_close(got, torch.tensor(want), atol=6e-4, rtol=0)
    assert got[2].item() == pytest.approx(want[2], abs=1e-6)
    if kind == "log":
        return  # has no mean to divide by: tests/ops/test_errors.py
    normal = uk.difficulty_weight(miou, kind=kind, normalize=True, backend=backend)
    torch.testing.assert_close(normal.mean(), torch.tensor(1.0))
    torch.testing.assert_close(normal * got.mean(), got)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("d", "k3"), [(0.3, 0.049859), (-0.3, 0.040818)])
def test_k3(d: float, k3: float, backend: uk.Backend) -> None:
    """One response of one token with A = 0 leaves the KL term alone; its gradient is 1 - e^d."""
    logp = torch.tensor([-1.0], requires_grad=True)
    out = uk.policy_loss(
        logp,
        torch.tensor([0, 1]),
        advantages=torch.zeros(1),
        ref_logp=torch.tensor([-1.0 + d]),
        config=uk.GrpoConfig(beta=1.0),
        backend=backend,
    )
    out.loss.backward()
    assert out.loss.item() == pytest.approx(k3, abs=1e-6)
    assert uk.summarize(out.metrics)["kl"] == pytest.approx(k3, abs=1e-6)
    assert logp.grad is not None and logp.grad.item() == pytest.approx(1 - torch.tensor(d).exp().item(), abs=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_negative_phi_is_not_an_advantage(backend: uk.Backend) -> None:
    """phi·min(..) and min(phi·..) part where phi < 0: at A = 1, ratio 1.5, phi = -0.02 the loss is 0.024, not 0.030."""
    out = uk.policy_loss(
        torch.tensor([1.5]).log(),
        torch.tensor([0, 1]),
        advantages=torch.ones(1),
        phi=torch.tensor([-0.02]),
        old_logp=torch.zeros(1),
        backend=backend,
    )
    assert out.loss.item() == pytest.approx(0.024, abs=1e-7)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("loss", "level"), PAIRS)
def test_on_policy_it_is_the_policy_gradient(loss: str, level: str, backend: uk.Backend) -> None:
    """At ratio 1 every loss of the table, however its papers write it, has the gradient -A of its rows' mean."""
    logp = -torch.rand(6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logp.requires_grad_()
    config = uk.GrpoConfig(
        loss_type=loss, importance_sampling_level=level, loss_aggregation="seq-mean-token-mean", epsilon_high=1.0
    )
    advantages = torch.tensor([1.5, -0.7], dtype=torch.float64)
    uk.policy_loss(logp, torch.tensor([0, 4, 6]), advantages=advantages, config=config, backend=backend).loss.backward()
    want = torch.tensor([-1.5 / 4] * 4 + [0.7 / 2] * 2, dtype=torch.float64) / 2
    torch.testing.assert_close(logp.grad, want)


CASES = [(2.0, 1.5), (2.0, 0.5), (-2.0, 1.5), (-2.0, 0.5)]  # (A, ratio)
# Losses and gradients of one token with lp = -1 in these cases.
GOLDEN = {
    "grpo": ([-2.4, -1.0, 3.0, 1.6], [0.0, -1.0, 3.0, 0.0]),
    "cispo": ([0.4, 0.4, -0.4, -0.4], [-0.4, -0.4, 0.4, 0.4]),  # the raw bound 0.2
    "sapo": ([-4.979675, -3.020325, 4.787171, 2.831877], [-2.820045, -0.940015, 2.802419, 0.934140]),
    "vespo": ([1.004085, 2.240845, -2.483186, -0.679570], [-1.004085, -2.240845, 2.483186, 0.679570]),
    "gmpo": ([-2.442806, -1.0, 3.0, 1.637462], [0.0, -1.0, 3.0, 0.0]),  # e^0.2 and e^-0.2
    "reinforce": ([2.0, 2.0, -2.0, -2.0], [-2.0, -2.0, 2.0, 2.0]),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("loss", GOLDEN)
def test_losses_on_paper(loss: str, backend: uk.Backend) -> None:
    losses, slopes = GOLDEN[loss]
    config = uk.GrpoConfig(loss_type=loss, loss_aggregation="token-mean")
    for i, (advantage, ratio) in enumerate(CASES):
        logp = torch.tensor([-1.0], requires_grad=True)
        rows = dict(advantages=torch.tensor([advantage]), old_logp=-1 - torch.tensor([ratio]).log())
        out = uk.policy_loss(logp, torch.tensor([0, 1]), config=config, backend=backend, **rows)
        out.loss.backward()
        assert out.loss.item() == pytest.approx(losses[i], abs=2e-6)
        assert logp.grad is not None and logp.grad.item() == pytest.approx(slopes[i], abs=2e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("kind", "value", "slope"),
    [("k1", -0.3, 1.0), ("k2", 0.045, -0.3), ("k3", 0.049859, -0.349859), ("k1+", -0.3, -0.3), ("k3+", 0.049859, -0.3)],
)
def test_kls_on_paper(kind: str, value: float, slope: float, backend: uk.Backend) -> None:
    """lp = -1, ref = -0.7; times the ratio 2 with use_bias_correction_kl, whose gradient is (slope + value)·2."""
    for corrected, loss, gradient in ((False, value, slope), (True, 2 * value, 2 * (slope + value))):
        logp = torch.tensor([-1.0], requires_grad=True)
        rows = dict(advantages=torch.zeros(1), old_logp=-1 - torch.tensor([2.0]).log(), ref_logp=torch.tensor([-0.7]))
        config = uk.GrpoConfig(beta=1.0, kl_estimator=kind, use_bias_correction_kl=corrected)
        out = uk.policy_loss(logp, torch.tensor([0, 1]), config=config, backend=backend, **rows)
        out.loss.backward()
        assert out.loss.item() == pytest.approx(loss, abs=2e-6)
        assert logp.grad is not None and logp.grad.item() == pytest.approx(gradient, abs=2e-6)
