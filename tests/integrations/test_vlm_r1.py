"""The VLM-R1 / UniVG-R1 drop-in, against a trainer in the shape of theirs (hosts/vlm_r1.py) on a small Qwen2-VL."""

from __future__ import annotations

import contextlib
import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from integrations.hosts.models import plain_model
from integrations.hosts.vlm_r1 import GRPOConfig, VLMGRPOTrainer
from tiny import FAMILIES, random_sample
from torch import Tensor
from transformers import TrainerCallback
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from univg_fast.integrations import vlm_r1

IMAGES = {"one image": [(4, 6)], "three images": [(4, 4), (6, 4), (2, 8)], "text": []}


def iou_reward(completions: list[list[int]], **_: Any) -> list[float]:
    """Some number of a completion between 0 and 1."""
    return [(7 * sum(ids) % 101) / 101 for ids in completions]


def length_reward(completions: list[list[int]], **_: Any) -> list[float]:
    return [len(ids) / 6 for ids in completions]


def make_trainer(folder: Path, family: str = "qwen2_vl", kind: str = "three images", **settings: Any) -> Any:
    model = plain_model(family)
    rng, patch, data = np.random.default_rng(0), model.config.vision_config.patch_size, []
    for _ in range(4):
        sample = random_sample(rng, IMAGES[kind], patch_size=patch)
        pixels = torch.from_numpy(sample.pixel_values)
        frames = pixels.view(len(pixels), 3, 1, patch**2).expand(-1, -1, 2, -1).reshape(-1, 6 * patch**2)
        images = {"pixel_values": frames, "image_grid_thw": torch.from_numpy(sample.image_grid_thw)}
        data.append({"prompt": sample.prompt_ids.tolist()} | (images if IMAGES[kind] else {}))
    own = {
        "per_device_train_batch_size": 8,
        "max_steps": 2,
        "learning_rate": 1e-4,
        "optim": "sgd",
        "seed": 3,
        "suppress_tokens": (2, 3, 4, 5),
    }
    own |= {
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "lr_scheduler_type": "constant",
    }
    own |= {"remove_unused_columns": False, "max_grad_norm": 0.0, "output_dir": str(folder), "disable_tqdm": True}
    return VLMGRPOTrainer(model, [iou_reward, length_reward], GRPOConfig(**(own | settings)), data)


class Gradients(TrainerCallback):
    def __init__(self) -> None:
        self.found: list[dict[str, Tensor]] = []

    def on_pre_optimizer_step(self, *_: Any, model: Any, **__: Any) -> None:
        self.found.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})


def train(trainer: Any, **settings: Any) -> tuple[list[dict[str, float]], list[dict[str, Tensor]]]:
    """What was logged, and the gradients of each optimizer step; with the drop-in where settings are given."""
    gradients = Gradients()
    trainer.add_callback(gradients)
    with vlm_r1.patch(trainer, **settings) if settings else contextlib.nullcontext():
        trainer.train()
    return trainer.state.log_history[:-1], gradients.found


def assert_same(ours: Any, theirs: Any) -> None:
    assert [log.keys() for log in ours[0]] == [log.keys() for log in theirs[0]]
    for mine, other in zip(ours[0], theirs[0], strict=True):
        assert mine == pytest.approx(other, rel=1e-5, abs=1e-6)
    for mine, other in zip(ours[1], theirs[1], strict=True):
        assert mine.keys() == other.keys()
        for name in mine:
            assert (mine[name] - other[name]).norm() <= 1e-5 * max(other[name].norm().item(), 1e-3), name


@pytest.mark.parametrize("kind", IMAGES)
@pytest.mark.parametrize("shared", [True, False])
def test_training_is_the_hosts(tmp_path: Path, kind: str, shared: bool) -> None:
    theirs = train(make_trainer(tmp_path, kind=kind))
    trainer = make_trainer(tmp_path, kind=kind)
    ours = train(trainer, shared_prefix=shared)
    assert_same(ours, theirs)
    assert len({log["loss"] for log in theirs[0]}) == 2 and theirs[0][1]["kl"] > 0


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


def test_a_prompt_is_computed_once_and_only_completions_meet_the_vocabulary(tmp_path: Path) -> None:
    trainer, seen = make_trainer(tmp_path, beta=0.0), list[tuple[int, int]]()
    text, head, visual = trainer.model.model.language_model, trainer.model.lm_head, trainer.model.model.visual
    with vlm_r1.patch(trainer):
        inputs = trainer._generate_and_score_completions([trainer.train_dataset[0]] * 4, trainer.model)
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        norm = text.norm.register_forward_hook(lambda _, args, __: seen.append(tuple(args[0].shape[:2])))
        patches = visual.patch_embed.register_forward_hook(lambda _, args, __: seen.append((0, len(args[0]))))
        scored = head.register_forward_hook(lambda _, __, out: seen.append(tuple(out.shape[1:])))
        trainer._get_per_token_logps(trainer.model, ids, mask, **inputs["multimodal_inputs"])
    for hook in (norm, patches, scored):
        hook.remove()
    completions, item = int(inputs["completion_mask"].sum()), trainer.train_dataset[0]
    assert seen == [(0, len(item["pixel_values"])), (1, len(item["prompt"]) + completions), (completions, 2)]


def test_everything_is_put_back(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    parts = [trainer, trainer.model, trainer.ref_model, *trainer.model.modules()]
    before = [dict(vars(part)) for part in parts]
    functions = list(trainer.reward_funcs)
    with vlm_r1.patch(trainer, phi="iou_reward"):
        assert vars(trainer) != before[0]
        with pytest.raises(ValueError, match="patched already"):
            vlm_r1.patch(trainer)
        assert "_get_per_token_logps" in vars(trainer), "a refused patch undoes only its own"
    assert [dict(vars(part)) for part in parts] == before
    assert trainer.reward_funcs == functions
    assert trainer.model.config.get_text_config()._attn_implementation == "sdpa"


def test_no_attention_stays_in_the_table_of_transformers(tmp_path: Path) -> None:
    trainer, before = make_trainer(tmp_path), list(ALL_ATTENTION_FUNCTIONS)
    with vlm_r1.patch(trainer):
        trainer.compute_loss(trainer.model, [trainer.train_dataset[0]] * 4).backward()
    assert list(ALL_ATTENTION_FUNCTIONS) == before


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, num_iterations=2)
    with pytest.raises(ValueError, match="iou_reward, length_reward"):
        vlm_r1.patch(trainer, phi="accuracy")
    with pytest.raises(ValueError, match="num_iterations"):
        vlm_r1.patch(trainer, phi="iou_reward", difficulty="log")
    with pytest.raises(ValueError, match="difficulty must be one of"):
        vlm_r1.patch(trainer, phi="iou_reward", difficulty="hard")
    trainer.args.miou_adjust = True
    with pytest.raises(ValueError, match="miou_adjust"):
        vlm_r1.patch(trainer, phi="iou_reward")
    with vlm_r1.patch(trainer), pytest.raises(ValueError, match=r"model\.generate"):
        trainer._get_per_token_logps(trainer.model, torch.ones(4, 9, dtype=torch.int64), torch.ones(4, 9))
    trainer._get_per_token_logps = lambda model, ids: ids
    with pytest.raises(ValueError, match="attention_mask"):
        vlm_r1.patch(trainer)


def test_a_model_whose_prompts_cannot_be_shared_is_refused(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    text = trainer.model.config.get_text_config()
    text.attention_dropout = 0.1
    with pytest.raises(ValueError, match=r"attention_dropout must be 0 to share prompts, got 0\.1"):
        vlm_r1.patch(trainer)
    text.attention_dropout = 0.0
    trainer.model.config.model_type = "internvl"
    with pytest.raises(ValueError, match="qwen3_vl, got internvl; pass shared_prefix=False"):
        vlm_r1.patch(trainer)


def test_an_output_embedding_that_is_not_plain_is_refused(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    head = trainer.model.lm_head
    head.weight = torch.nn.Parameter(head.weight.detach().to(torch.uint8), requires_grad=False)
    with pytest.raises(ValueError, match=r"floating-point weight, got torch\.uint8"):
        vlm_r1.patch(trainer)
    trainer = make_trainer(tmp_path)
    trainer.model.config.get_text_config().output_multiplier = 0.5
    with pytest.raises(ValueError, match="changes its logits after lm_head"):
        vlm_r1.patch(trainer)


def test_prompts_that_differ_are_not_shared(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, beta=0.0)
    mixed = [trainer.train_dataset[i % 2] for i in range(8)]
    with vlm_r1.patch(trainer), pytest.raises(ValueError, match="sequences 0 and 1 must have one prompt"):
        trainer.compute_loss(trainer.model, mixed)
    theirs = make_trainer(tmp_path, beta=0.0)
    torch.manual_seed(5)
    with vlm_r1.patch(trainer, shared_prefix=False):
        loss = trainer.compute_loss(trainer.model, mixed)
    torch.manual_seed(5)
    assert loss.item() == pytest.approx(theirs.compute_loss(theirs.model, mixed).item(), rel=1e-5, abs=1e-6)


@pytest.mark.slow
def test_under_zero_3_the_output_embedding_is_gathered_for_the_scores(python_launcher: Any) -> None:
    """UniVG-R1 trains under ZeRO 3: two ranks, weights in parts, checkpointed layers; loss and gradients stay."""
    done = python_launcher(str(Path(__file__).with_name("hosts") / "zero3_worker.py"), ranks=2)
    assert done.returncode == 0, done.stderr[-4000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith('{"worst"')]
    assert json.loads(line)["worst"] < 1e-5
