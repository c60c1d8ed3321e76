"""Loading: versions, unknown folders, seeded weights, a saved folder read back."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import FAMILIES, VOCAB, random_group, tiny_model

from univg_fast.config import ModelConfig
from univg_fast.config.schema import DataConfig
from univg_fast.data.coordinates import SYSTEMS
from univg_fast.data.entries import STYLES
from univg_fast.data.tokenizer import build_tokenizer
from univg_fast.evaluate.load import processor_of
from univg_fast.model import PackedModel
from univg_fast.model.families import FAMILIES as MODULES
from univg_fast.model.families import family_of
from univg_fast.model.load import builtin_configs, check_version, load_model, small_config
from univg_fast.packing import build_row
from univg_fast.train.setup import freeze

each_family = pytest.mark.parametrize("family", FAMILIES)


@each_family
def test_seed_decides_the_weights(family: str) -> None:
    first, same, other = (load_model(f"{family}_tiny", vocab=VOCAB, seed=s).state_dict() for s in (1, 1, 2))
    assert all(torch.equal(first[k], same[k]) for k in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


@each_family
def test_saved_folder_is_read_back_equal(family: str, tmp_path: Path) -> None:
    """Also after rows drove the model: what that edits is not saved."""
    packed = tiny_model(family)
    packed.model.save_pretrained(tmp_path)
    again = PackedModel(load_model(str(tmp_path)))
    assert all(torch.equal(a, b) for a, b in zip(packed.parameters(), again.parameters(), strict=True))
    assert again.model.lm_head.weight is again.model.get_input_embeddings().weight
    group = random_group(np.random.default_rng(0), [(4, 6)], [3], packed.family.patch_size)
    row = build_row([group], packed.family)
    assert torch.equal(packed.hidden(row), again.hidden(row))


def test_each_family_is_found_and_tested() -> None:
    """A file in univg_fast/model/families is enough for the package; tests/tiny.py names it for all tests."""
    assert set(MODULES) == set(FAMILIES)
    assert builtin_configs() == sorted(f"{name}_tiny" for name in FAMILIES)


@each_family
def test_what_the_data_side_reads_of_a_family(family: str) -> None:
    found = tiny_model(family).family
    assert found.coordinates in SYSTEMS and found.answer_style in STYLES
    copied = pickle.loads(pickle.dumps(found))  # workers may be processes
    assert copied.vision_inputs(np.array([[1, 4, 6], [1, 2, 2]])).image_tokens == (6, 1)


@each_family
def test_a_tokenizer_of_another_model_is_refused(family: str) -> None:
    """Its placeholders would be no images to the model, whose tower then would see none."""
    tokenizer = build_tokenizer(["a box"])
    own = family_of(small_config(f"{family}_tiny", tokenizer.get_vocab()))
    assert processor_of(tokenizer, own, DataConfig()).image_token_id == own.image_token_id
    shifted = replace(own, image_token_id=own.image_token_id + 1)
    with pytest.raises(
        ValueError, match=rf"<\|image_pad\|> to be token {shifted.image_token_id},.*got {own.image_token_id}"
    ):
        processor_of(tokenizer, shifted, DataConfig())


@each_family
def test_a_family_names_all_of_its_tower(family: str) -> None:
    """What of it has weights is its patches, its blocks, or the projector, which is frozen or trained by itself."""
    model = tiny_model(family)
    weighted = {
        name for name, part in model.model.model.visual.named_children() if any(True for _ in part.parameters())
    }
    assert weighted - {"patch_embed", "blocks", "pos_embed"} == set(model.family.projector)
    assert len(model.model.model.visual.blocks) == model.family.tower.depth >= model.family.tower.whole


@each_family
@pytest.mark.parametrize(("tower", "projector"), [(True, False), (False, True), (False, None), (True, None)])
def test_tower_and_projector_are_frozen_by_themselves(family: str, tower: bool, projector: bool | None) -> None:
    """null: the projector as the tower. What is frozen gets no gradient, and lets it through to what lies below."""
    model = tiny_model(family)
    freeze(model.model, ModelConfig(freeze_vision_tower=tower, freeze_multi_modal_projector=projector))
    group = random_group(np.random.default_rng(0), [(4, 6)], [3], model.family.patch_size)
    model.hidden(build_row([group], model.family)).sum().backward()
    moved = {name for name, p in model.model.model.visual.named_parameters() if p.grad is not None}
    assert any("blocks" in name for name in moved) == (not tower)
    assert any("merger" in name for name in moved) == (not (tower if projector is None else projector))


def test_an_unknown_family_names_the_choices(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match=r"'llama' model; supported: .*qwen2_5_vl.*qwen3_vl"):
        load_model(str(tmp_path))


def test_unknown_path_names_the_choices() -> None:
    with pytest.raises(ValueError, match=r"model\.path: .*qwen2_vl_tiny.*no/such/folder"):
        load_model("no/such/folder")


def test_missing_special_tokens_are_named() -> None:
    with pytest.raises(ValueError, match=r"image_pad"):
        load_model("qwen2_vl_tiny", vocab={"a": 0})


@pytest.mark.parametrize("version", ["4.49.0", "5.24.0"])
def test_transformers_outside_the_range_is_refused(version: str) -> None:
    with pytest.raises(RuntimeError, match=rf"transformers: expected >=5\.16.*got {version}"):
        check_version(version)


@pytest.mark.parametrize("problem", ["missing", "mismatched"])
def test_a_folder_that_lacks_a_weight_is_refused(problem: str, tmp_path: Path) -> None:
    """transformers fills it with random numbers, which differ from load to load."""
    tiny_model().model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = next(key for key in weights if key.endswith("layers.0.mlp.down_proj.weight"))
    weight = weights.pop(name)
    if problem == "mismatched":
        weights[name] = weight[:-1].contiguous()
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=rf"model\.path: .* 1 {problem}: .*{name}"):
        load_model(str(tmp_path))
