"""Published numbers of UniVG-R1's rewards, advantages, phi and KL."""

from __future__ import annotations

import pytest
import torch
import univg_kernels as uk

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
