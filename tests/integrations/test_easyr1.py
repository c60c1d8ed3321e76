"""The EasyR1 drop-in, against a host in the shape of EasyR1 (hosts/easyr1.py) on a small Qwen2-VL with images."""

from __future__ import annotations

import contextlib
import math
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from integrations.hosts import easyr1 as host
from tiny import IMAGE, VOCAB
from torch import Tensor

from univg_fast.integrations import easyr1
from univg_fast.model import load_model

B, P, R, TEMPERATURE = 8, 12, 7, 0.9
IOUS = [0.1, 0.9, 0.3, 1.0, 0.5, 0.6, 0.99, 0.8]
SCORES = {"overall": [0.2, 1.0, 0.7, 1.5, 0.1, 0.4, 0.9, 1.1], "iou": IOUS}
UIDS = ["a", "a", "b", "b", "c", "c", "d", "d"]


def install(monkeypatch: pytest.MonkeyPatch, folder: Path, version: str = "0.3.3.dev0") -> None:
    """The host under the names that EasyR1 has, for this test alone."""
    info = folder / f"verl-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: verl\nVersion: {version}\n")
    monkeypatch.syspath_prepend(str(folder))
    for name in ("verl", "verl.workers", "verl.workers.actor", "verl.trainer"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    for name in ("verl.workers.actor.dp_actor", "verl.trainer.ray_trainer"):
        monkeypatch.setitem(sys.modules, name, host)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path)


def make_data() -> Any:
    """Prompts padded left with an image each, responses padded right; none of its tensors is shared between calls."""
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(6, 100, (B, P + R), generator=g)
    ids[:, 5:9] = IMAGE
    mask = torch.ones_like(ids)
    for row, (left, right) in enumerate([(3, 0), (0, 2), (1, 0), (0, 4), (2, 1), (0, 0), (1, 3), (0, 1)]):
        mask[row, :left] = 0
        mask[row, P + R - right :] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, None].expand(B, 4, -1).clone()
    images = [
        {"pixel_values": torch.randn(16, 3 * 2 * 14**2, generator=g), "image_grid_thw": torch.tensor([[1, 4, 4]])}
        for _ in range(B)
    ]
    batch = {
        "input_ids": ids,
        "attention_mask": mask,
        "position_ids": positions,
        "responses": ids[:, P:],
        "response_mask": mask[:, P:],
    }
    return host.data_proto(batch, {"uid": np.array(UIDS), "multi_modal_inputs": images}, TEMPERATURE)


def make_model() -> Any:
    model: Any = load_model("qwen2_vl_tiny", vocab=VOCAB)
    model.set_attn_implementation({"text_config": "sdpa", "vision_config": "sdpa"})
    return model


class Steps(torch.optim.SGD):
    """Keeps the gradients of each step."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__(model.parameters(), lr=1e-2)
        self.named, self.found = dict(model.named_parameters()), list[dict[str, Tensor]]()

    def step(self, closure: Any = None) -> None:
        self.found.append({name: p.grad.clone() for name, p in self.named.items() if p.grad is not None})
        super().step(closure)


def train(
    patched: bool, scale: Tensor | None = None, **settings: Any
) -> tuple[dict[str, Any], list[dict[str, Tensor]]]:
    """Metrics and gradients of a training step with two updates. settings: of the drop-in, and of the actor.

    scale: [B] factors of the advantages, in the host's hands.
    """
    own = {name: settings.pop(name) for name in ("phi", "difficulty", "difficulty_power") if name in settings}
    model = make_model()
    optimizer = Steps(model)
    actor = host.DataParallelPPOActor(host.ActorConfig(**settings), model, optimizer)
    data = make_data()
    old, noise = actor.compute_log_prob(data), torch.Generator().manual_seed(1)
    data.batch["old_log_probs"] = old + 0.3 * torch.randn(B, R, generator=noise)
    data.batch["ref_log_probs"] = old + 0.2 * torch.randn(B, R, generator=noise)
    if scale is not None:
        actor.update_policy = weighted(actor.update_policy, scale)
    with easyr1.patch(**own) if patched else contextlib.nullcontext():
        metrics = host.training_step(actor, data, SCORES)
    return metrics, optimizer.found


def weighted(update_policy: Any, scale: Tensor) -> Any:
    def update(data: Any) -> Any:
        data.batch["advantages"] = data.batch["advantages"] * scale[:, None]
        return update_policy(data)

    return update


def assert_same(ours: tuple[Any, Any], theirs: tuple[Any, Any]) -> None:
    assert ours[0].keys() == theirs[0].keys()
    for name, value in theirs[0].items():
        np.testing.assert_allclose(ours[0][name], value, rtol=1e-5, atol=2e-6, err_msg=name)
    for step, (a, b) in enumerate(zip(ours[1], theirs[1], strict=True)):
        assert a.keys() == b.keys()
        for name in b:
            error = (a[name] - b[name]).norm() / b[name].norm().clamp(min=1e-6)
            assert error < 1e-5, f"step {step}, {name}: {error}"


CASES = [
    {"loss_type": "default"},
    {"loss_type": "default", "loss_avg_mode": "seq", "padding_free": False},
    {"loss_type": "gspo"},
    {"loss_type": "gspo_token", "loss_avg_mode": "seq"},
    {"loss_type": "cispo", "padding_free": False},
    {"loss_type": "sapo"},
]


@pytest.mark.parametrize("settings", CASES, ids=lambda s: " ".join(map(str, s.values())))
def test_a_step_is_the_hosts(settings: dict[str, Any], installed: None) -> None:
    assert_same(train(True, **settings), train(False, **settings))


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


def test_phi_weighs_the_groups(installed: None) -> None:
    """As the host with weighted advantages, and as the formula in fp64 for the first update; exp(1 - mIoU)."""
    settings: dict[str, Any] = {"use_kl_loss": False, "micro_batch_size_per_device_for_update": 4}
    metrics, gradients = train(True, phi="iou", **settings)
    mious = [sum(IOUS[i : i + 2]) / 2 for i in (0, 0, 2, 2, 4, 4, 6, 6)]
    assert_same((metrics, gradients), train(False, scale=torch.tensor([math.exp(1 - m) for m in mious]), **settings))
    mask, noise = make_data().batch["response_mask"], torch.Generator().manual_seed(1)
    difference = -0.3 * torch.randn(
        B, R, generator=noise
    )  # the policy's from its old self: the first update's is known
    total = 0.0
    for i in range(4):  # the first update: prompts a and b
        scores = SCORES["overall"][2 * (i // 2) : 2 * (i // 2) + 2]
        deviation = abs(scores[0] - scores[1]) / math.sqrt(2)
        advantage = (SCORES["overall"][i] - sum(scores) / 2) / (deviation + 1e-6)
        phi = math.exp(1 - (IOUS[2 * (i // 2)] + IOUS[2 * (i // 2) + 1]) / 2)
        for t in range(R):
            if mask[i, t]:
                ratio = math.exp(difference[i, t])
                term = max(-advantage * ratio, -advantage * min(max(ratio, 0.8), 1.3))
                total += phi * (min(term, -advantage * 3) if advantage < 0 else term)
    assert metrics["actor/pg_loss"][0] == pytest.approx(total / mask[:4].sum().item(), rel=2e-5)


def test_phi_does_not_weigh_a_kl_in_the_reward(installed: None) -> None:
    data = make_data()
    zeros = torch.zeros(B, R)
    data.batch |= {"old_log_probs": zeros, "ref_log_probs": zeros - 1, "token_level_scores": zeros}
    with easyr1.patch(phi="iou"):
        with pytest.raises(ValueError, match="use_kl_loss=False puts KL into the reward"):
            host.apply_kl_penalty(data, SimpleNamespace(kl_coef=0.01))
        host.apply_kl_penalty(data, SimpleNamespace(kl_coef=0.0))
    with easyr1.patch():
        host.apply_kl_penalty(data, SimpleNamespace(kl_coef=0.01))
    assert data.batch["token_level_rewards"].max() < 0


def test_it_is_put_back(installed: None) -> None:
    before = {
        name: vars(host).get(name)
        for name in ("compute_policy_loss", "compute_advantage", "reduce_metrics", "apply_kl_penalty")
    }
    method = host.DataParallelPPOActor._forward_micro_batch
    patch = easyr1.patch(phi="iou")
    assert host.compute_policy_loss is not before["compute_policy_loss"]
    with pytest.raises(ValueError, match="patched already"):
        easyr1.patch()
    patch.restore()
    assert {name: vars(host).get(name) for name in before} == before
    assert host.DataParallelPPOActor._forward_micro_batch is method


def test_logits_of_prompts_are_not_made(installed: None) -> None:
    actor = host.DataParallelPPOActor(host.ActorConfig(), make_model())
    seen: list[int] = []
    actor.actor_module.get_output_embeddings().register_forward_hook(lambda m, i, o: seen.append(o.shape[1]))
    data = make_data()
    host_result = actor.compute_log_prob(data)
    with easyr1.patch():
        ours = actor.compute_log_prob(data)
    mask = data.batch["response_mask"].bool()
    torch.testing.assert_close(ours[mask], host_result[mask], rtol=1e-5, atol=1e-5)
    assert sum(seen[:4]) == data.batch["attention_mask"].sum() and sum(seen[4:]) == mask.sum()


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
