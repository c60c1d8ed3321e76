"""A packed shared-prefix row equals one plain forward pass per response: log-probs and every gradient."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import random_group, tiny_model

from univg_fast.model import PackedModel
from univg_fast.model.attention import TEXT, VISION
from univg_fast.packing import Row, build_row
from univg_fast.structs import Group

CASES = {
    "one group": [([(8, 8)], [5, 9, 3])],
    "different images and lengths": [
        ([(8, 8), (4, 6)], [5, 9, 3, 1]),
        ([(6, 6)], [4]),
        ([(4, 6), (8, 8), (8, 8)], [12, 1]),
    ],
    "equal prompts, one bucket": [([(4, 4), (4, 4)], [3, 7]), ([(4, 4), (4, 4)], [6, 2])],
    "text only beside images": [([], [4, 4]), ([(8, 4)], [3, 5, 5]), ([], [1])],
    "all text, SFT packing": [([], [4]), ([], [9]), ([], [2])],
}


def logprobs(model: PackedModel, row: Row) -> torch.Tensor:
    def head(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return (hidden @ weight.T).log_softmax(-1).gather(-1, row.target_ids[:, None])[:, 0]

    return model(row, head)


def separate_logprobs(model: PackedModel, groups: list[Group]) -> torch.Tensor:
    """transformers' own forward pass, own positions and own attention, one sequence per response."""
    hf, out = model.model, []
    hf.set_attn_implementation({"text_config": "eager", "vision_config": "eager"})
    for group in groups:
        for response in group.responses:
            ids = torch.from_numpy(np.concatenate([group.sample.prompt_ids, response]))[None]
            images = {}
            if len(group.sample.image_grid_thw):
                images = {
                    "pixel_values": torch.from_numpy(group.sample.pixel_values),
                    "image_grid_thw": torch.from_numpy(group.sample.image_grid_thw),
                }
            types = (ids == model.family.image_token_id).int()
            logits = hf(input_ids=ids, mm_token_type_ids=types, use_cache=False, **images).logits[0]
            first = len(group.sample.prompt_ids)
            out.append(logits[first - 1 : -1].log_softmax(-1).gather(-1, ids[0, first:, None])[:, 0])
    hf.set_attn_implementation({"text_config": TEXT, "vision_config": VISION})
    return torch.cat(out)


def gradients(model: PackedModel, logp: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    weights = torch.linspace(-1, 1, len(logp)) + 0.1  # tell every token apart
    (logp * weights).sum().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_equals_separate_sequences(case: str, checkpointing: bool) -> None:
    rng, model = np.random.default_rng(1), tiny_model()
    groups = [random_group(rng, grids, lengths) for grids, lengths in CASES[case]]
    want = separate_logprobs(model, groups)
    want_grads = gradients(model, want)
    if checkpointing:
        model.train()
        model.model.gradient_checkpointing_enable({"use_reentrant": False})
    got = logprobs(model, build_row(groups, model.family))
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    got_grads = gradients(model, got)
    assert got_grads.keys() >= want_grads.keys()
    for name in got_grads.keys() - want_grads.keys():  # a row without images runs a blank one for nothing
        assert not got_grads[name].any(), name
    for name, grad in want_grads.items():
        error = (got_grads[name] - grad).norm() / grad.norm().clamp_min(1e-6)
        assert error <= 1e-5, f"{name}: relative gradient error {error:.2e}"


def test_wrong_positions_are_noticed() -> None:
    """The control: positions that go on from the prompt's length, not from its largest position, must differ."""
    rng, model = np.random.default_rng(2), tiny_model()
    group = random_group(rng, [(8, 8)], [6, 6])
    row = build_row([group], model.family)
    wrong = row.position_ids.clone()
    wrong[:, :, len(group.sample.prompt_ids) :] += 4
    moved = logprobs(model, replace(row, position_ids=wrong)) - logprobs(model, row)
    assert moved.abs().max() > 1e-2


@pytest.mark.parametrize("perturb", [0, 1, 2])
def test_groups_do_not_leak(perturb: int) -> None:
    """Other pixels in one group: that group moves, every other one stays equal to the last bit."""
    rng, model = np.random.default_rng(3), tiny_model()
    groups = [random_group(rng, grids, lengths) for grids, lengths in CASES["different images and lengths"]]
    before = logprobs(model, build_row(groups, model.family))
    changed = replace(groups[perturb].sample, pixel_values=groups[perturb].sample.pixel_values + 1)
    row = build_row([replace(g, sample=changed) if i == perturb else g for i, g in enumerate(groups)], model.family)
    after = logprobs(model, row)
    for index in range(len(groups)):
        first, last = (int(row.cu_seqlens[int(row.cu_groups[index + k])]) for k in (0, 1))
        same = torch.equal(before[first:last], after[first:last])
        assert same == (index != perturb)


def test_siblings_do_not_see_each_other() -> None:
    rng, model = np.random.default_rng(4), tiny_model()
    group = random_group(rng, [(4, 4)], [5, 5])
    other = replace(group, responses=(group.responses[0], group.responses[1][::-1].copy()))
    before, after = (logprobs(model, build_row([g], model.family)) for g in (group, other))
    assert torch.equal(before[:5], after[:5])
    assert not torch.equal(before[5:], after[5:])


def test_images_encoded_once_give_the_same_row() -> None:
    rng, model = np.random.default_rng(5), tiny_model()
    row = build_row([random_group(rng, [(8, 8), (4, 6), (8, 8)], [3, 4])], model.family)
    features = model.encode_images(row.pixel_values, row.vision)
    assert torch.equal(model.hidden(row), model.hidden(row, features))
