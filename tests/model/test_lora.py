"""Adapters inside of the packed model: peft's own model on separate sequences, what trains, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import peft
import pytest
import torch
from tiny import FAMILIES, VOCAB, random_group, tiny_model
from univg_kernels import GrpoConfig

from univg_fast.config import ModelConfig
from univg_fast.config.schema import LoraConfig
from univg_fast.loss import grpo_head, logprob_head
from univg_fast.loss.grpo import RowTargets
from univg_fast.model import PackedModel, load_model
from univg_fast.model.load import freeze_vision, projector_parts
from univg_fast.model.lora import LAYERS, adapters_off, apply_lora, is_adapted
from univg_fast.packing import Row, build_row
from univg_fast.structs import Group
from univg_fast.train.setup import freeze

each_family = pytest.mark.parametrize("family", FAMILIES)
CONFIG = GrpoConfig(loss_type="grpo", beta=0.0, temperature=1.0)


def adapted(family: str = "qwen2_vl", **settings: Any) -> PackedModel:
    """A small model with adapters that matter, its tower frozen."""
    model = tiny_model(family)
    freeze_vision(model.model)
    apply_lora(model.model, **{"r": 4, "lora_alpha": 8.0} | settings)
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def groups_of(model: PackedModel) -> list[Group]:
    rng, patch = np.random.default_rng(5), model.family.patch_size
    return [random_group(rng, [(8, 4), (4, 6)], [5, 9, 3], patch), random_group(rng, [(6, 4)], [4, 2], patch)]


def row_of(model: PackedModel) -> Row:
    return build_row(groups_of(model), model.family)


def loss_of(model: PackedModel, row: Row) -> torch.Tensor:
    responses = len(row.cu_seqlens) - 1
    targets = RowTargets(torch.linspace(-1, 1, responses) + 0.1, torch.ones(responses))
    return model(row, grpo_head(row, targets, responses, CONFIG)).loss


def trained(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def separate(model: PackedModel, **settings: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The same by transformers and peft alone, a sequence per response. -> log-probs [N], gradients by name."""
    hf: Any = load_model(f"{model.model.config.model_type}_tiny", vocab=VOCAB)
    wrapped = peft.get_peft_model(hf, peft.LoraConfig(r=4, lora_alpha=8, target_modules=LAYERS, **settings))
    hf.load_state_dict(model.model.state_dict())
    hf.eval().set_attn_implementation({"text_config": "eager", "vision_config": "eager"})
    out = []
    for group in groups_of(model):
        sample = group.sample
        frames = sample.pixel_values.reshape(-1, 3, 1, model.family.patch_size**2).repeat(2, axis=2)
        for response in group.responses:
            ids = torch.from_numpy(np.concatenate([sample.prompt_ids, response]))[None]
            logits = wrapped(
                input_ids=ids,
                mm_token_type_ids=(ids == model.family.image_token_id).int(),
                use_cache=False,
                pixel_values=torch.from_numpy(frames.reshape(len(frames), -1)),
                image_grid_thw=torch.from_numpy(sample.image_grid_thw),
            ).logits[0]
            first = len(sample.prompt_ids)
            out.append(logits[first - 1 : -1].log_softmax(-1).gather(-1, ids[0, first:, None])[:, 0])
    advantages = torch.linspace(-1, 1, len(out)) + 0.1
    pairs = zip(out, advantages, strict=True)
    loss = sum((-a * (logp - logp.detach()).exp()).mean() for logp, a in pairs) / len(out)
    names = trained(hf)
    grads = torch.autograd.grad(loss, list(names.values()))
    return torch.cat(out).detach(), {f"model.{n}": g for n, g in zip(names, grads, strict=True)}


@pytest.mark.parametrize("saved", [(), ("lm_head",)], ids=["", "lm_head"])
@each_family
def test_a_packed_row_equals_pefts_model_on_separate_sequences(family: str, saved: tuple[str, ...]) -> None:
    model = adapted(family, modules_to_save=saved)
    more = {"modules_to_save": list(saved), "ensure_weight_tying": True} if saved else {}
    want_logp, want = separate(model, **more)
    row = row_of(model)
    with torch.no_grad():
        torch.testing.assert_close(model(row, logprob_head(row, 1.0)), want_logp, rtol=1e-5, atol=1e-5)
    for checkpointing in (False, True):
        if checkpointing:  # nothing before the adapters has a gradient: a re-entrant checkpoint would lose theirs
            model.train()
            model.model.gradient_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        loss_of(model, row).backward()
        assert trained(model).keys() == want.keys()
        for name, parameter in trained(model).items():
            assert parameter.grad is not None and parameter.grad.any(), f"{name} has no gradient"
            error = (parameter.grad - want[name]).norm() / want[name].norm().clamp_min(1e-6)
            assert error <= 1e-5, f"{name}: relative gradient error {error:.2e}"
        assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


@each_family
def test_only_the_language_model_has_adapters_and_they_begin_as_nothing(family: str) -> None:
    model, plain = tiny_model(family), tiny_model(family)
    freeze_vision(model.model)
    line = apply_lora(model.model, r=4, lora_alpha=8.0)
    layers = [name for name, layer in model.named_modules() if is_adapted(layer)]
    assert len(layers) == 7 * model.model.config.get_text_config().num_hidden_layers
    assert f"{len(layers)} layers of rank 4" in line
    assert all(".language_model.layers." in name and "visual" not in name for name in layers)
    assert all("lora_" in name for name in trained(model))
    row = row_of(model)
    head = logprob_head(row, 1.0)
    assert torch.equal(model(row, head), plain(row, head)), "before the first step"


def test_first_adapters_depend_on_the_seed_alone() -> None:
    found = []
    for seed, noise in ((1, 10), (1, 11), (2, 10)):
        torch.manual_seed(noise)
        model = tiny_model()
        apply_lora(model.model, r=4, lora_alpha=8.0, seed=seed)
        found.append(torch.cat([p.flatten() for p in trained(model).values()]))
        assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(noise)))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


@pytest.mark.parametrize("saved", [(), ("lm_head",), ("embed_tokens", "lm_head")], ids=str)
def test_with_adapters_off_it_is_the_model_they_were_put_into(saved: tuple[str, ...]) -> None:
    model, plain = adapted(modules_to_save=saved), tiny_model()
    row = row_of(model)
    head, before = logprob_head(row, 1.0), list(trained(model))
    with torch.no_grad():
        with adapters_off(model):
            assert torch.equal(model(row, head), plain(row, head))
        assert (model(row, head) - plain(row, head)).abs().max() > 1e-2, "and on it is not"
    assert list(trained(model)) == before


def test_dropout_is_the_updates_alone() -> None:
    model = adapted(lora_dropout=0.5)
    row = row_of(model)
    head = logprob_head(row, 1.0)
    still = adapted()
    with torch.no_grad():
        assert torch.equal(model.eval()(row, head), still(row, head))
        torch.manual_seed(1)
        first = model.train()(row, head)
        assert not torch.equal(first, model(row, head)), "drawn anew in each pass"
        torch.manual_seed(1)
        assert torch.equal(first, model(row, head)), "and the random state that a checkpoint holds decides it"


@each_family
def test_the_projector_of_a_frozen_tower_can_train(family: str) -> None:
    whole, model = tiny_model(family), tiny_model(family)
    freeze_vision(model.model, projector=False)
    assert model.vision_trains
    loss_of(model, row_of(model)).backward()
    loss_of(whole, row_of(whole)).backward()
    want = dict(whole.named_parameters())
    tower = {name: p for name, p in model.named_parameters() if ".visual." in name}
    inside = {name for name, p in tower.items() if p.grad is not None}
    assert inside == {name for name in tower if "merger" in name}
    assert len({name.split("visual.")[1].split(".")[0] for name in inside}) == (2 if family == "qwen3_vl" else 1)
    for name in inside:
        assert torch.equal(tower[name].grad, want[name].grad), name  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_modules": ["qkv"]}, "'qkv' also means model.visual.blocks.0.attn.qkv, inside of the frozen"),
        ({"target_modules": ["q_proj", "lm_head"]}, "lm_head cannot have adapters"),
        ({"target_modules": ["embed_tokens"]}, "name it in model.lora.modules_to_save"),
        ({"target_modules": ["w_pack"]}, "model.lora.target_modules: expected the end of a module's name"),
        ({"modules_to_save": ["score"]}, "model.lora.modules_to_save: expected the end of a module's name"),
        ({"modules_to_save": ["merger"]}, "inside of the frozen vision tower"),
    ],
)
def test_adapters_that_cannot_work_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        adapted(**settings)


def test_the_projector_beside_adapters() -> None:
    """As a whole, if it is named, in a tower that is not frozen: then no features are shared with the reference."""
    model = tiny_model()
    apply_lora(model.model, r=4, lora_alpha=8.0, modules_to_save=["merger"])
    assert model.vision_trains
    assert {name.split("visual.")[1].split(".")[0] for name in trained(model) if "visual" in name} == {"merger"}


@each_family
def test_a_projector_that_the_configuration_trains_trains_beside_adapters(family: str) -> None:
    """As a whole, in the frozen tower, and with the adapters off it is the one they began with."""
    model, plain = tiny_model(family), tiny_model(family)
    how = ModelConfig(freeze_multi_modal_projector=False, lora=LoraConfig(r=4, modules_to_save=("lm_head",)))
    (line,) = freeze(model.model, how)
    assert "visual.merger" in line and "lm_head" in line
    names = {name for name in trained(model) if ".visual." in name}
    parts = projector_parts(plain.model).values()
    assert len(names) == sum(len(list(part.parameters())) for part in parts) > 0
    assert all("merger" in name and "modules_to_save" in name for name in names)
    row = row_of(model)
    loss_of(model, row).backward()
    assert all(p.grad is not None for p in trained(model).values())
    with torch.no_grad():
        for name in names:
            trained(model)[name].mul_(1.5)
        with adapters_off(model):
            assert torch.equal(model(row, logprob_head(row, 1.0)), plain(row, logprob_head(row, 1.0)))
        assert not torch.equal(model(row, logprob_head(row, 1.0)), plain(row, logprob_head(row, 1.0)))


def test_a_tower_that_the_configuration_trains_is_not_left_out_silently() -> None:
    with pytest.raises(ValueError, match="model.freeze_vision_tower: expected true beside model.lora"):
        freeze(tiny_model().model, ModelConfig(freeze_vision_tower=False, lora=LoraConfig(r=4)))
    named = LoraConfig(r=4, target_modules=("q_proj", "attn.qkv"))
    model = tiny_model()
    freeze(model.model, ModelConfig(freeze_vision_tower=False, lora=named))
    assert any(".visual." in name for name in trained(model))
    inside = ModelConfig(freeze_multi_modal_projector=False, lora=named)
    with pytest.raises(ValueError, match="inside of the frozen vision tower"):  # the projector trains, the rest not
        freeze(tiny_model().model, inside)


def test_a_row_given_features_needs_no_tower() -> None:
    model = adapted()
    row = row_of(model)
    assert not model.vision_trains
    with torch.no_grad():
        features = model.encode_images(row.pixel_values, row.vision)
        blind = replace(row, pixel_values=torch.full_like(row.pixel_values, float("nan")))
        assert torch.equal(model(blind, logprob_head(row, 1.0), features), model(row, logprob_head(row, 1.0)))
