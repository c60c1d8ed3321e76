"""The EasyR1 drop-in, against a host in the shape of EasyR1 (hosts/easyr1.py) on a small Qwen2-VL with images."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from integrations.easyr1_problem import (
    IOUS,
    SCORES,
    B,
    R,
    assert_same,
    install,
    make_data,
    make_model,
    train,
)
from integrations.hosts import easyr1 as host
from pages import snippets

from univg_fast.integrations import easyr1


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path)


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


def test_the_snippet_of_the_docs(installed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, patch = list[Any](), easyr1.patch
    with monkeypatch.context() as context:
        context.setattr(easyr1, "patch", lambda **given: kept.append(patch(**given)))  # to put it back afterwards
        exec(snippets("EasyR1")[0], {})
    with kept[0]:
        found = train(False)
    assert_same(found, train(True, phi="iou"))


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


def test_validation_is_the_hosts_and_leaves_nothing_behind(installed: None) -> None:
    """It reduces scores by the function that φ listens to, φ's own among them; `IOUS` in another order."""
    other = {"overall": SCORES["overall"], "iou": IOUS[::-1]}
    expected, theirs = host.validate([other]), train(True, phi="iou")
    with easyr1.patch(phi="iou"):
        assert host.validate([other]) == expected
        data = make_data()
        data.batch["token_level_rewards"] = torch.ones(B, R)
        host.reduce_metrics({"overall": SCORES["overall"]})  # a step's, without φ's score
        with pytest.raises(ValueError, match="phi='iou' must be a score"):
            host.compute_advantage(data, adv_estimator="grpo")
    assert_same(train(True, phi="iou", validation=other), theirs)


def test_the_log_probs_of_the_old_policy_are_made_in_eval_mode(installed: None) -> None:
    model, modes = make_model(), list[tuple[bool, bool]]()
    model.lm_head.register_forward_hook(lambda *_: modes.append((model.training, torch.is_grad_enabled())))
    with easyr1.patch():
        logp = host.DataParallelPPOActor(host.ActorConfig(), model.train()).compute_log_prob(make_data())
    assert set(modes) == {(False, False)} and not logp.requires_grad


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
