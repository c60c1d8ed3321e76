"""A packed shared-prefix row equals transformers' own eager pass on each sequence: log-probs, loss, every gradient."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from tiny import FAMILIES, VOCAB, random_group, tiny_model
from univg_kernels import GrpoConfig

from univg_fast.loss import grpo_head
from univg_fast.loss.grpo import RowTargets
from univg_fast.model import PackedModel, load_model
from univg_fast.packing import Row, build_row
from univg_fast.structs import Group

CASES: dict[str, list[tuple[list[tuple[int, int]], list[int]]]] = {  # (images' patches, responses' lengths) of groups
    "one group": [([(8, 8)], [5, 9, 3])],
    "different images and lengths": [
        ([(8, 8), (4, 6)], [5, 9, 3, 1]),
        ([(6, 6)], [4]),
        ([(4, 6), (8, 8), (8, 8)], [12, 1]),
    ],
    "equal prompts, one bucket": [([(4, 4), (4, 4)], [3, 7]), ([(4, 4), (4, 4)], [6, 2])],
    "text only beside images": [([], [4, 4]), ([(8, 4)], [3, 5, 5]), ([], [1])],
    "all text, SFT packing": [([], [4]), ([], [9]), ([], [2])],
    "eight images, sixteen responses": [
        ([(4, 4), (2, 2), (6, 4), (4, 10), (4, 4), (8, 6), (2, 8), (4, 4)], [*range(1, 17)]),
        ([(6, 4)], [3]),
    ],
}
KL = 0.04
each_family = pytest.mark.parametrize("family", FAMILIES)


def groups_of(case: str, model: PackedModel, seed: int = 1) -> list[Group]:
    rng, patch = np.random.default_rng(seed), model.family.patch_size
    return [random_group(rng, grids, lengths, patch) for grids, lengths in CASES[case]]


def logprobs(model: PackedModel, row: Row) -> torch.Tensor:
    def head(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return (hidden @ weight.T).log_softmax(-1).gather(-1, row.target_ids[:, None])[:, 0]

    return model(row, head)


@cache
def separate_logprobs(family: str, case: str) -> tuple[torch.Tensor, Any]:
    """From a model of transformers that this package never touched: own attention, positions and patches, one sequence
    per response. -> log-probs [N], the model."""
    packed = tiny_model(family)
    hf: Any = load_model(f"{family}_tiny", vocab=VOCAB)
    hf.load_state_dict(packed.model.state_dict())
    hf.eval().set_attn_implementation({"text_config": "eager", "vision_config": "eager"})
    out = []
    for group in groups_of(case, packed):
        sample = group.sample
        frames = sample.pixel_values.reshape(-1, 3, 1, packed.family.patch_size**2).repeat(2, axis=2)
        for response in group.responses:
            ids = torch.from_numpy(np.concatenate([sample.prompt_ids, response]))[None]
            images = {}
            if len(sample.image_grid_thw):
                images = {
                    "pixel_values": torch.from_numpy(frames.reshape(len(frames), -1)),
                    "image_grid_thw": torch.from_numpy(sample.image_grid_thw),
                }
            types = (ids == packed.family.image_token_id).int()
            logits = hf(input_ids=ids, mm_token_type_ids=types, use_cache=False, **images).logits[0]
            first = len(sample.prompt_ids)
            out.append(logits[first - 1 : -1].log_softmax(-1).gather(-1, ids[0, first:, None])[:, 0])
    return torch.cat(out), hf


def targets_of(row: Row) -> RowTargets:
    """Advantages that tell all responses apart, and another policy for the KL term."""
    responses, tokens = len(row.cu_seqlens) - 1, len(row.target_ids)
    reference = torch.linspace(-5, -3, tokens)
    return RowTargets(torch.linspace(-1, 1, responses) + 0.1, torch.ones(responses), ref_logp=reference)


@cache
def separate_loss(family: str, case: str) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Log-probs, loss and gradients by the published formula of GRPO."""
    logp, hf = separate_logprobs(family, case)
    row = build_row(groups_of(case, tiny_model(family)), tiny_model(family).family)
    targets, loss = targets_of(row), torch.zeros(())
    lengths = row.cu_seqlens.diff().tolist()
    for own, ref, advantage in zip(
        logp.split(lengths), targets.ref_logp.split(lengths), targets.advantages, strict=True
    ):
        kl = (ref - own).exp() - (ref - own) - 1
        loss = loss + (KL * kl - advantage * (own - own.detach()).exp()).mean() / len(lengths)
    names, parameters = zip(*hf.named_parameters(), strict=True)
    grads = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return logp.detach(), loss.detach(), {f"model.{n}": g for n, g in zip(names, grads, strict=True) if g is not None}


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
@pytest.mark.parametrize("case", CASES)
@each_family
def test_equals_separate_sequences(family: str, case: str, frozen: bool, checkpointing: bool) -> None:
    model = tiny_model(family)
    want_logp, want_loss, want = separate_loss(family, case)
    if frozen:
        model.model.model.visual.requires_grad_(False)
        want = {name: grad for name, grad in want.items() if ".visual." not in name}
    if checkpointing:
        model.train()
        model.model.gradient_checkpointing_enable({"use_reentrant": False})
    row = build_row(groups_of(case, model), model.family)
    config = GrpoConfig(loss_type="grpo", beta=KL, temperature=1.0)
    got = model(row, grpo_head(row, targets_of(row), len(row.cu_seqlens) - 1, config))
    torch.testing.assert_close(got.logp, want_logp, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got.loss, want_loss, rtol=1e-5, atol=1e-7)
    got.loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert grads.keys() >= want.keys()
    for name in grads.keys() - want.keys():  # a trained tower also runs, for nothing, in a row without images
        assert not grads[name].any(), name
    for name, grad in want.items():
        error = (grads[name] - grad).norm() / grad.norm().clamp_min(1e-6)
        assert error <= 1e-5, f"{name}: relative gradient error {error:.2e}"


@each_family
def test_every_part_of_the_model_has_a_gradient(family: str) -> None:
    """Else the test above would compare nothing there."""
    _, _, grads = separate_loss(family, "different images and lengths")
    assert grads.keys() == dict(tiny_model(family).named_parameters()).keys()
    assert all(grad.any() for grad in grads.values())


@each_family
def test_wrong_positions_are_noticed(family: str) -> None:
    """The control: positions that go on from the prompt's length, not from its largest position, must differ."""
    model = tiny_model(family)
    group = random_group(np.random.default_rng(2), [(8, 8)], [6, 6], model.family.patch_size)
    row = build_row([group], model.family)
    wrong = row.position_ids.clone()
    wrong[:, :, len(group.sample.prompt_ids) :] += 4
    moved = logprobs(model, replace(row, position_ids=wrong)) - logprobs(model, row)
    assert moved.abs().max() > 1e-2


@each_family
@pytest.mark.parametrize("perturb", [0, 1, 2])
def test_groups_do_not_leak(family: str, perturb: int) -> None:
    """Other pixels in one group: that group moves, every other one stays equal to the last bit."""
    model = tiny_model(family)
    groups = groups_of("different images and lengths", model)
    before = logprobs(model, build_row(groups, model.family))
    changed = replace(groups[perturb].sample, pixel_values=groups[perturb].sample.pixel_values + 1)
    row = build_row([replace(g, sample=changed) if i == perturb else g for i, g in enumerate(groups)], model.family)
    after = logprobs(model, row)
    lengths = [sum(map(len, group.responses)) for group in groups]
    for index, parts in enumerate(zip(before.split(lengths), after.split(lengths), strict=True)):
        same = torch.equal(*parts)
        assert same == (index != perturb)


@each_family
def test_siblings_do_not_see_each_other(family: str) -> None:
    model = tiny_model(family)
    group = random_group(np.random.default_rng(4), [(4, 4)], [5, 5], model.family.patch_size)
    other = replace(group, responses=(group.responses[0], group.responses[1][::-1].copy()))
    before, after = (logprobs(model, build_row([g], model.family)) for g in (group, other))
    assert torch.equal(before[:5], after[:5])
    assert not torch.equal(before[5:], after[5:])
