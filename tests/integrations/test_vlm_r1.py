"""The VLM-R1 / UniVG-R1 drop-in, against a trainer in the shape of theirs (hosts/vlm_r1.py) on a small Qwen2-VL."""

from __future__ import annotations

import contextlib
import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from integrations.vlm_r1_problem import IMAGES, assert_same, iou_reward, length_reward, make_trainer, train
from pages import snippets
from tiny import FAMILIES
from torch import Tensor
from transformers import TrainerCallback

from univg_fast.integrations import vlm_r1


@pytest.mark.parametrize("kind", IMAGES)
@pytest.mark.parametrize("shared", [True, False])
def test_training_is_the_hosts(tmp_path: Path, kind: str, shared: bool) -> None:
    theirs = train(make_trainer(tmp_path, kind=kind))
    trainer = make_trainer(tmp_path, kind=kind)
    ours = train(trainer, shared_prefix=shared)
    assert_same(ours, theirs)
    assert len({log["loss"] for log in theirs[0]}) == 2 and theirs[0][1]["kl"] > 0


def test_the_snippet_of_the_docs(tmp_path: Path) -> None:
    trainer, space = make_trainer(tmp_path, kind="text", max_steps=1), dict[str, Any]()
    exec(snippets("VLM-R1 and UniVG-R1")[0], space)
    space["train"](trainer)
    assert 1 < trainer.state.log_history[0]["difficulty_weight"] < 2.7183
    assert "_get_per_token_logps" not in vars(trainer)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "qwen2_vl"])
def test_other_families(tmp_path: Path, family: str) -> None:
    theirs = train(make_trainer(tmp_path, family))
    assert_same(train(make_trainer(tmp_path, family), shared_prefix=True), theirs)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_iterations": 2, "max_steps": 4},  # completions used twice: old log-probs, ratios beside 1
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "num_iterations": 2, "max_steps": 3},
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
        {"miou_adjust": True, "beta": 0.0},  # UniVG-R1's own weight stays
    ],
    ids=["iterations", "accumulation", "checkpointing", "univg_r1"],
)
def test_what_the_host_does_around_it_stays(tmp_path: Path, settings: dict[str, Any]) -> None:
    theirs = train(make_trainer(tmp_path, **settings))
    assert_same(train(make_trainer(tmp_path, **settings), shared_prefix=True), theirs)


class Evaluation(TrainerCallback):
    """After each step: the model in eval mode, no gradients, other prompts."""

    def __init__(self, trainer: Any) -> None:
        self.trainer, self.losses = trainer, list[float]()

    def on_step_end(self, *_: Any, model: Any, **__: Any) -> None:
        model.eval()
        items = [x for x in self.trainer.train_dataset[1:3] for _ in range(4)]
        with torch.no_grad():
            self.losses.append(self.trainer.compute_loss(model, items).item())
        model.train()


@pytest.mark.parametrize("shared", [True, False])
def test_evaluation_between_steps_is_the_hosts(tmp_path: Path, shared: bool) -> None:
    found = []
    for settings in ({"shared_prefix": shared}, {}):
        trainer = make_trainer(tmp_path, kind="one image")
        evaluation = Evaluation(trainer)
        trainer.add_callback(evaluation)
        found.append((train(trainer, **settings), evaluation.losses))
    (ours, ours_losses), (theirs, theirs_losses) = found
    assert_same(ours, theirs)
    assert ours_losses == pytest.approx(theirs_losses, rel=1e-5, abs=1e-6) and len(set(theirs_losses)) == 2


def test_the_hosts_own_evaluate_stops_without_the_drop_in_too(tmp_path: Path) -> None:
    """It has no prediction_step of its own, and transformers' takes no lists of prompts."""
    errors = []
    for ours in (True, False):
        trainer = make_trainer(tmp_path, kind="text")
        with vlm_r1.patch(trainer) if ours else contextlib.nullcontext(), pytest.raises(AttributeError) as error:
            trainer.evaluate(trainer.train_dataset)
        errors.append(str(error.value))
    assert errors == ["'list' object has no attribute 'get'"] * 2


@pytest.mark.parametrize(("difficulty", "power"), [("exp", 1.0), ("power", 2.0), ("log", 1.0)])
def test_phi_is_the_formula(tmp_path: Path, difficulty: str, power: float) -> None:
    """In fp64, sequence by sequence; UniVG-R1 has one weight for both groups of the batch."""
    trainer = make_trainer(tmp_path, beta=0.04)
    model = copy.deepcopy(trainer.model).double()
    reference = copy.deepcopy(model)
    reference.lm_head.weight.data *= 1.01  # so that there is a KL
    trainer.ref_model.load_state_dict({k: v.float() for k, v in reference.state_dict().items()})
    with vlm_r1.patch(trainer, phi="iou_reward", difficulty=difficulty, difficulty_power=power):
        loss = trainer.compute_loss(trainer.model, [x for x in trainer.train_dataset[:2] for _ in range(4)])
        loss.backward()
    inputs = trainer._buffered_inputs[0]
    completions = [
        i[m.bool()].tolist() for i, m in zip(inputs["completion_ids"], inputs["completion_mask"], strict=True)
    ]
    ious, totals, terms = iou_reward(completions), [], []
    rewards = np.array(ious) + np.array(length_reward(completions))
    for i, completion in enumerate(completions):
        group = slice(i // 4 * 4, i // 4 * 4 + 4)
        miou = float(np.mean(ious[group]))
        formulas = {"exp": math.exp(1 - miou), "power": (1.05 - miou) ** power, "log": -math.log(0.02 + miou)}
        advantage = (rewards[i] - rewards[group].mean()) / (rewards[group].std(ddof=1) + 1e-4)
        item = trainer.train_dataset[i // 4]
        logp, ref = (logp_of(m, item, completion) for m in (model, reference))
        policy = -(logp - logp.detach()).exp() * advantage
        totals.append((formulas[difficulty] * policy + 0.04 * ((ref - logp).exp() - (ref - logp) - 1)).mean())
        terms.append(formulas[difficulty])
    total = torch.stack(totals).mean()
    total.backward()
    assert loss.item() == pytest.approx(total.item(), rel=1e-5, abs=1e-6)
    assert trainer._metrics["difficulty_weight"] == [pytest.approx(np.mean(terms), rel=1e-6)]
    assert trainer._metrics["miou"] == [pytest.approx(np.mean(ious), rel=1e-6)]
    assert len(set(terms)) == 2
    for (name, mine), theirs in zip(trainer.model.named_parameters(), model.parameters(), strict=True):
        if theirs.grad is not None:
            assert (mine.grad - theirs.grad).norm() <= 1e-5 * max(theirs.grad.norm().item(), 1e-3), name


def logp_of(model: Any, item: dict[str, Any], completion: list[int]) -> Tensor:
    ids = torch.tensor([item["prompt"] + completion])
    images = {"pixel_values": item["pixel_values"].double(), "image_grid_thw": item["image_grid_thw"]}
    kinds = (ids == model.config.image_token_id).int()
    logits = model(input_ids=ids, mm_token_type_ids=kinds, **images).logits[0, len(item["prompt"]) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(completion)[:, None])[:, 0]
