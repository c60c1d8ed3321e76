"""The EasyR1 drop-in's losses where they clip; it is put back, and refuses what it cannot follow."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from integrations.easyr1_problem import assert_same, install, make_data, make_model, train
from integrations.hosts import easyr1 as host

from univg_fast.integrations import easyr1


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path)


@pytest.mark.parametrize("loss_type", easyr1.LOSSES)
@pytest.mark.parametrize("mode", easyr1.AGGREGATIONS)
def test_losses_where_it_clips(loss_type: str, mode: str, installed: None) -> None:
    """fp64, far from the old policy on both sides, an empty response, advantages of 0."""
    g = torch.Generator().manual_seed(2)
    old = -2 * torch.rand(5, 6, generator=g, dtype=torch.float64)
    given = {
        "old_log_probs": old,
        "log_probs": old + torch.randn(5, 6, generator=g, dtype=torch.float64),
        "advantages": torch.randn(5, 1, generator=g, dtype=torch.float64).expand(5, 6).clone(),
        "response_mask": torch.arange(6) < torch.tensor([6, 3, 0, 5, 1])[:, None],
        "clip_ratio_low": 0.2,
        "clip_ratio_high": 0.3,
        "clip_ratio_dual": 1.5,
        "tau_positive": 0.8,
        "tau_negative": 1.05,
    }
    given["log_probs"][0, 0], given["log_probs"][3, 1] = old[0, 0] + 21, old[3, 1] - 22
    given["advantages"][4] = 0
    theirs = host.compute_policy_loss
    found = []
    with easyr1.patch():
        for function in (host.compute_policy_loss, theirs):
            log_probs = given["log_probs"].clone().requires_grad_()
            loss, metrics = function(**given | {"log_probs": log_probs}, loss_type=loss_type, loss_avg_mode=mode)
            found.append((loss.detach(), torch.autograd.grad(loss, log_probs)[0], metrics))
    (loss, gradient, metrics), (expected, expected_gradient, expected_metrics) = found
    torch.testing.assert_close(loss, expected, rtol=3e-8, atol=1e-10)
    torch.testing.assert_close(gradient, expected_gradient, rtol=3e-8, atol=1e-10)
    assert metrics == pytest.approx(expected_metrics, rel=1e-6)


def test_cispo_and_sapo_have_no_dual_clip(installed: None) -> None:
    """clip_ratio_high beyond clip_ratio_dual, which EasyR1 reads for its clipped surrogates alone."""
    wide = {"clip_ratio_high": 4.0, "clip_ratio_dual": 3.0}
    for loss_type in ("cispo", "sapo"):
        assert_same(train(True, loss_type=loss_type, **wide), train(False, loss_type=loss_type, **wide))
    for loss_type in ("default", "gspo", "gspo_token"):
        with pytest.raises(ValueError, match="clip_ratio_dual must be at least 1 . the upper clip ratio = 5"):
            train(True, loss_type=loss_type, **wide)


def test_phi_and_online_filtering(installed: None) -> None:
    """EasyR1 reduces the scores of all that it has tried, then drops and balances: they may even be as many."""
    filtering, plain = (SimpleNamespace(algorithm=SimpleNamespace(online_filtering=x)) for x in (True, False))
    with easyr1.patch(phi="iou"):
        with pytest.raises(ValueError, match="phi='iou' needs algorithm.online_filtering=False"):
            host.RayPPOTrainer(config=filtering)
        assert host.RayPPOTrainer(plain).config is plain
    with easyr1.patch():
        assert host.RayPPOTrainer(filtering).config is filtering


def test_it_is_put_back(installed: None) -> None:
    before = {
        name: vars(host).get(name)
        for name in ("compute_policy_loss", "compute_advantage", "reduce_metrics", "apply_kl_penalty")
    }
    method, init = host.DataParallelPPOActor._forward_micro_batch, host.RayPPOTrainer.__init__
    patch = easyr1.patch(phi="iou")
    assert host.compute_policy_loss is not before["compute_policy_loss"]
    with pytest.raises(ValueError, match="patched already"):
        easyr1.patch()
    patch.restore()
    assert {name: vars(host).get(name) for name in before} == before
    assert host.DataParallelPPOActor._forward_micro_batch is method and host.RayPPOTrainer.__init__ is init


class Wrong:
    """A host whose method has lost its temperature."""

    def _forward_micro_batch(self, micro_batch: dict[str, Any]) -> None: ...


def test_what_cannot_be(monkeypatch: pytest.MonkeyPatch, installed: None) -> None:
    with pytest.raises(ValueError, match="difficulty must be 'exp' or 'power' here, got 'log'"):
        easyr1.patch(phi="iou", difficulty="log")
    with pytest.raises(ValueError, match="phi='miou' must be a score"):
        train(True, phi="miou")
    with pytest.raises(ValueError, match="clip_ratio_dual must be at least"):
        train(True, clip_ratio_dual=1.1)
    with pytest.raises(ValueError, match="loss_type must be one of"):
        train(True, loss_type="dro")
    with pytest.raises(ValueError, match="ulysses_size must be 1"):
        train_with_ulysses()
    monkeypatch.setattr(host, "DataParallelPPOActor", Wrong)
    with pytest.raises(ValueError, match="has no parameter temperature"):
        easyr1.patch()


def train_with_ulysses() -> None:
    actor = host.DataParallelPPOActor(host.ActorConfig(ulysses_size=2), make_model())
    with easyr1.patch():
        actor.compute_log_prob(make_data())


def test_another_verl_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path, "0.9.1")
    with pytest.raises(ValueError, match=r"verl 0\.9\.1 is installed, .* tested with 0\.3"):
        easyr1.patch()
