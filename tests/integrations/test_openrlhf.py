"""The OpenRLHF drop-in, against OpenRLHF's own Actor, PolicyLoss and advantages (hosts/openrlhf.py)."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from integrations.hosts.models import plain_model
from integrations.hosts.openrlhf import VERSION, OpenRLHF, imported
from ops.peers.source import PEERS, functions, methods
from pages import snippets
from tiny import random_sample
from torch import Tensor

from univg_fast.integrations import openrlhf

STEPS, ACTIONS = 3, 7
_MAKER = "openrlhf/trainer/ppo_utils/experience_maker.py"


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenRLHF]:
    with imported(PEERS, tmp_path_factory.mktemp("openrlhf")) as found:
        torch.compiler.set_stance("force_eager")  # compute_entropy is compiled there: minutes of a small core
        yield found
        torch.compiler.set_stance("default")


def make_actor(host: OpenRLHF, packing: bool = False, temperature: float = 0.7) -> Any:
    model = plain_model()
    actor = host.actor.Actor(model, temperature=temperature)
    actor.packing_samples, actor.is_vlm, actor._vlm_config = packing, not packing, model.config
    return actor.train()


def make_batch(packing: bool) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    sample = random_sample(rng, [] if packing else [(4, 6), (4, 4)])
    generator = torch.Generator().manual_seed(0)
    sequences = torch.randint(6, 100, (4, ACTIONS + len(sample.prompt_ids)), generator=generator)
    sequences[:, :-ACTIONS] = torch.from_numpy(sample.prompt_ids)
    action_mask = (torch.arange(ACTIONS) < torch.tensor([7, 4, 1, 6])[:, None]).long()
    attention_mask = torch.cat([torch.ones_like(sequences[:, :-ACTIONS]), action_mask], 1)
    images = {}
    if not packing:
        pixels = torch.from_numpy(sample.pixel_values).view(-1, 3, 1, 14 * 14)
        images["pixel_values"] = pixels.expand(-1, -1, 2, -1).flatten(1).repeat(4, 1)
        images["image_grid_thw"] = torch.from_numpy(sample.image_grid_thw).repeat(4, 1)
    return {"sequences": sequences, "action_mask": action_mask, "attention_mask": attention_mask} | images


def train(host: OpenRLHF, actor: Any, reference: Any, batch: dict[str, Any], **loss: Any) -> tuple[list[Any], ...]:
    """Three steps as `ActorPPOTrainer.training_step` has them: what is logged, and each parameter's gradients."""
    policy_loss, mask = host.loss.PolicyLoss(**loss), batch["action_mask"]
    advantages = torch.tensor([1.2, -0.7, 0.4, -0.9])[:, None].expand(mask.shape)
    optimizer = torch.optim.SGD(actor.parameters(), 1e-3)
    logged, gradients = [], []
    with torch.no_grad():
        ref, old = reference(**batch), actor(**batch)
        old = old + 0.3 * torch.sin(torch.arange(old.numel())).view(old.shape)
    for _ in range(STEPS):
        logp, output = actor(**batch, return_output=True, return_entropy=True)
        value, *rest = policy_loss(logp, old, advantages, action_mask=mask, rollout_log_probs=old - 0.05)
        kl = host.loss.aggregate_loss(host.utils.compute_approx_kl(logp, ref, kl_estimator="k3"), mask)
        entropy = host.loss.aggregate_loss(output.entropy[:, -ACTIONS:], mask)
        total = value + 0.1 * kl - 0.01 * entropy
        optimizer.zero_grad()
        total.backward()
        logged.append([float(x.detach()) for x in (total, value, *rest, kl, entropy) if x is not None])
        gradients.append({n: p.grad.clone() for n, p in actor.named_parameters() if p.grad is not None})
        optimizer.step()
    return logged, gradients


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize(
    "loss",
    [{"dual_clip": 3.0}, {"policy_loss_type": "gspo"}, {"is_correction_level": "token", "token_level_loss": False}],
    ids=["dual clip", "gspo", "corrected"],
)
def test_steps_are_the_hosts(host: OpenRLHF, packing: bool, loss: dict[str, Any]) -> None:
    batch, found = make_batch(packing), []
    for ours in (True, False):
        actor, reference = make_actor(host, packing), make_actor(host, packing)
        reference.model.lm_head.weight = torch.nn.Parameter(1.1 * reference.model.lm_head.weight.detach())
        with contextlib.ExitStack() as stack:
            for each in (actor, reference) if ours else ():
                stack.enter_context(openrlhf.patch(each))
            found.append(train(host, actor, reference, batch, **loss))
    (ours_logged, ours), (theirs_logged, theirs) = found
    for mine, other in zip(ours_logged, theirs_logged, strict=True):
        assert mine == pytest.approx(other, rel=1e-5, abs=1e-6)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.keys() == other.keys()
        for name in mine:
            assert (mine[name] - other[name]).norm() <= 1e-5 * max(other[name].norm().item(), 1e-3), name
    assert theirs_logged[0][0] != theirs_logged[-1][0]


def test_only_actions_meet_the_vocabulary(host: OpenRLHF) -> None:
    actor, batch, shapes = make_actor(host), make_batch(False), []
    with openrlhf.patch(actor):
        actor.model.lm_head.register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape)))
        actor(**batch)
    assert shapes == [(1, int(batch["action_mask"].sum()), 2)]


@pytest.mark.parametrize("packing", [False, True])
def test_passes_without_gradients_are_the_hosts(host: OpenRLHF, packing: bool) -> None:
    """`PolicyModelActor.forward`: the actor in eval mode, then back; its evaluation has no pass of the actor at all."""
    cpu = SimpleNamespace(no_grad=torch.no_grad, cuda=SimpleNamespace(current_device=lambda: "cpu"))
    name = "merge_mm_train_inputs"
    names = {"torch": cpu, name: functions("openrlhf/utils/vlm_utils.py", name)[name]}
    worker = methods("openrlhf/trainer/ray/ppo_actor.py", "PolicyModelActor", "forward", **names)()
    worker.actor, worker.strategy = make_actor(host, packing), SimpleNamespace(ring_attn_group=None)
    batch, modes, found = make_batch(packing), [], []
    names = [name for name in batch if name.startswith(("pixel", "image"))]
    images = [{name: batch[name].chunk(4)[i] for name in names} for i in range(4)]
    given = {name: batch[name] for name in ("sequences", "action_mask", "attention_mask")}
    worker.actor.register_forward_pre_hook(lambda module, _: modes.append((module.training, torch.is_grad_enabled())))
    for ours in (True, False):
        with openrlhf.patch(worker.actor) if ours else contextlib.nullcontext():
            found.append(worker.forward(**given, mm_train_inputs_list=None if packing else images))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)
    assert modes == [(False, False)] * 2 and worker.actor.training and not found[0].requires_grad


def test_calls_without_an_action_mask_are_the_hosts_and_everything_is_put_back(host: OpenRLHF) -> None:
    actor, batch = make_actor(host), make_batch(False)
    del batch["action_mask"]
    before = [set(vars(part)) for part in (actor, *actor.modules())]
    theirs = actor(**copy.deepcopy(batch), return_logprobs=True)
    with openrlhf.patch(actor):
        assert torch.equal(actor(**batch, return_logprobs=True), theirs)
        with pytest.raises(ValueError, match="patched already"):
            openrlhf.patch(actor)
        with pytest.raises(ValueError, match="ring_attn_size"):
            actor(batch["sequences"], torch.ones(4, ACTIONS), batch["attention_mask"], ring_attn_group=object())
    assert [set(vars(part)) for part in (actor, *actor.modules())] == before and actor.temperature == 0.7


def test_another_version_and_another_actor_are_refused(host: OpenRLHF, monkeypatch: pytest.MonkeyPatch) -> None:
    actor = make_actor(host)
    assert openrlhf.TESTED == (VERSION,)
    monkeypatch.setattr(openrlhf, "TESTED", ("0.4",))
    with pytest.raises(ValueError, match=rf"openrlhf {VERSION} is installed.*0\.4"):
        openrlhf.patch(actor)
    monkeypatch.undo()

    class Changed(host.actor.Actor):
        def forward(self, sequences: Tensor) -> Tensor:
            return sequences

    with pytest.raises(ValueError, match="no parameter action_mask"):
        openrlhf.patch(Changed(actor.model))


def make_maker() -> Any:
    """`RemoteExperienceMaker` without Ray: its own advantages, of group-normalised rewards."""
    import itertools

    needed = functions("openrlhf/models/utils.py", "compute_reward")
    penalties = {"apply_length_penalties": lambda *_: None, "itertools": itertools, "logger": None}
    wanted = ("compute_advantages_and_returns", "get_cumulative_returns")
    maker = methods(_MAKER, "RemoteExperienceMaker", *wanted, **needed, **penalties)()
    advantage = SimpleNamespace(estimator="group_norm", gamma=1.0, lambd=1.0)
    args = SimpleNamespace(
        rollout=SimpleNamespace(n_samples_per_prompt=4),
        algo=SimpleNamespace(advantage=advantage, kl=SimpleNamespace(use_loss=False)),
        reward=SimpleNamespace(clip_range=None),
    )
    maker.strategy, maker.kl_ctl = SimpleNamespace(args=args), SimpleNamespace(value=0.0)
    maker.advantage_estimator = "group_norm"
    return maker


def experiences(order: list[int]) -> list[Any]:
    rewards, ious = torch.tensor([1.5, 0.2, 0.4, 1.9, 0.1, 0.0, 0.3, 0.2]), torch.linspace(0.1, 0.9, 8)
    mask = torch.arange(5) < torch.tensor([5, 2, 3, 1, 4, 5, 1, 2])[:, None]
    return [
        SimpleNamespace(
            index=part,
            rewards=rewards[part],
            info={"iou": ious[part]},
            action_mask=mask[part],
            kl=torch.zeros(len(part), 5),
        )
        for part in (order[:3], order[3:])
    ]


@pytest.mark.parametrize(("difficulty", "power"), [("exp", 1.0), ("power", 2.0)])
def test_phi_is_that_of_each_prompt_in_any_order(host: OpenRLHF, difficulty: str, power: float) -> None:
    order = [3, 6, 0, 7, 1, 2, 5, 4]
    maker = make_maker()
    theirs = torch.cat([x.advantages for x in maker.compute_advantages_and_returns(experiences(order))])
    with openrlhf.patch_advantages(maker, phi="iou", difficulty=difficulty, difficulty_power=power):
        found = maker.compute_advantages_and_returns(experiences(order))
    mious = torch.linspace(0.1, 0.9, 8, dtype=torch.float64).view(2, 4).mean(1)
    formula = {"exp": (1 - mious).exp(), "power": (1.05 - mious) ** power}[difficulty]
    weight = formula.repeat_interleave(4)[order]
    torch.testing.assert_close(torch.cat([x.info["difficulty_weight"] for x in found]).double(), weight)
    ours = torch.cat([x.advantages for x in found])
    torch.testing.assert_close(ours, (theirs.double() * weight[:, None]).float(), rtol=1e-6, atol=1e-7)
    assert theirs.abs().max() > 0.5 and "compute_advantages_and_returns" not in vars(maker)


def test_the_snippet_of_the_docs(host: OpenRLHF) -> None:
    actor, maker, space = make_actor(host), make_maker(), dict[str, Any]()
    exec(snippets("OpenRLHF")[0], space)
    space["in_a_worker"](actor)
    space["in_the_trainer"](maker)
    found = maker.compute_advantages_and_returns(experiences(list(range(8))))
    assert "forward" in vars(actor) and all("difficulty_weight" in x.info for x in found)


def test_a_phi_that_is_not_there(host: OpenRLHF) -> None:
    maker = make_maker()
    with openrlhf.patch_advantages(maker, phi="miou"), pytest.raises(ValueError, match="'miou'; it has iou"):
        maker.compute_advantages_and_returns(experiences(list(range(8))))
    with pytest.raises(ValueError, match="'log' is negative"):
        openrlhf.patch_advantages(maker, phi="iou", difficulty="log")


def test_phi_does_not_weigh_a_kl_in_the_reward(host: OpenRLHF) -> None:
    maker = make_maker()
    with openrlhf.patch_advantages(maker, phi="iou"):
        maker.kl_ctl.value = 0.01  # an adaptive one's, later
        with pytest.raises(ValueError, match=r"algo\.kl\.init_coef=0\.01 puts KL into the reward"):
            maker.compute_advantages_and_returns(experiences(list(range(8))))
    with pytest.raises(ValueError, match="puts KL into the reward"):
        openrlhf.patch_advantages(maker, phi="iou")
    maker.strategy.args.algo.kl.use_loss = True
    openrlhf.patch_advantages(maker, phi="iou").restore()
