"""The policy's weights for rollout, whole under every ZeRO stage, with and without adapters."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from tiny import VOCAB, add_adapters, tiny_model

from univg_fast.data.tokenizer import build_tokenizer
from univg_fast.model import PackedModel, load_model
from univg_fast.rollout import LocalEngine
from univg_fast.train.zero import plain_copy, weight_buckets


@pytest.fixture(scope="module")
def report(launch: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("zero") / "report.json"
    done = launch("zero_worker.py", path, world=2)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(path.read_text())


@pytest.mark.parametrize("adapters", [False, True], ids=["", "adapters"])
@pytest.mark.parametrize("stage", [1, 3])
def test_two_ranks_send_whole_weights_and_roll_out_with_them(report: Any, stage: int, adapters: bool) -> None:
    found = report[f"{stage}-{adapters}"]
    assert sorted(found["names"]) == found["expected"] and found["right"] and found["same"]
    changed = [name for name in found["names"] if not adapters or "language_model" in name and "_proj.weight" in name]
    assert found["again"] == changed, "with adapters the tower, norms, biases and embeddings are sent once"
    assert len(found["sizes"]) > 3
    assert all(count == 1 or size <= found["max_bytes"] for count, size in found["sizes"])
    assert found["copied"] == (stage == 3)


def test_names_are_those_of_transformers_and_adapters_come_merged() -> None:
    plain = load_model("qwen2_vl_tiny", vocab=VOCAB)
    model = tiny_model()
    wrapped = add_adapters(model)
    sent = {name: weight.clone() for bucket in weight_buckets(model) for name, weight in bucket.items()}
    assert list(sent) == [name for name, _ in plain.named_parameters()]
    with wrapped.disable_adapter():
        base = {name: weight for bucket in weight_buckets(model) for name, weight in bucket.items()}
    changed = {name for name in sent if not torch.equal(sent[name], base[name])}
    assert changed == {name for name in sent if "language_model" in name and name.endswith("_proj.weight")}
    merged = dict(wrapped.merge_and_unload().named_parameters())
    assert all(torch.allclose(sent[name], merged[name], rtol=0, atol=1e-6) for name in sent)


def test_adapters_that_are_merged_already_are_not_merged_again() -> None:
    model = tiny_model()
    wrapped = add_adapters(model)
    want = {name: weight.clone() for bucket in weight_buckets(model) for name, weight in bucket.items()}
    wrapped.merge_adapter()
    got = {name: weight for bucket in weight_buckets(model) for name, weight in bucket.items()}
    assert list(got) == list(want)
    assert all(torch.allclose(got[name], want[name], rtol=0, atol=1e-6) for name in want)


def sent(model: PackedModel) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for bucket in weight_buckets(model) for name, weight in bucket.items()}


def adapted(modules_to_save: list[str], tie: bool) -> tuple[PackedModel, Any]:
    """(a model with adapters and trained modules that matter, peft's wrapper of it)"""
    model = tiny_model()
    names = r".*language_model\.layers\..*\.(q|v|up)_proj"
    config = peft.LoraConfig(r=4, target_modules=names, modules_to_save=modules_to_save, ensure_weight_tying=tie)
    wrapped = peft.get_peft_model(model.model, config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.3 * torch.rand_like(parameter))
    return model, wrapped


@pytest.mark.parametrize(
    ("modules", "tie"),
    [(["lm_head"], True), (["lm_head"], False), (["embed_tokens", "lm_head"], True), (["visual.merger"], False)],
    ids=str,
)
def test_modules_that_train_as_a_whole_have_their_own_names(modules: list[str], tie: bool) -> None:
    model, wrapped = adapted(modules, tie)
    plain = tiny_model()
    got = sent(model)
    with wrapped.disable_adapter():
        off = sent(model)
    with torch.no_grad():
        assert all(torch.equal(off[name], weight) for name, weight in plain.model.named_parameters())
    want = dict(wrapped.merge_and_unload().named_parameters())
    assert got.keys() == want.keys()
    for name, weight in want.items():
        torch.testing.assert_close(got[name], weight, rtol=0, atol=1e-6)
    began, parts = plain.model.state_dict(), ("lm_head", "embed_tokens", "merger")
    changed = [name for name in got if any(x in name for x in parts) and not torch.equal(got[name], began[name])]
    assert len(changed) == (6 if modules == ["visual.merger"] else 1)


def test_adapters_that_are_off_over_merged_weights_are_taken_out_again() -> None:
    model = tiny_model()
    wrapped = add_adapters(model)
    with wrapped.disable_adapter():
        want = sent(model)
    wrapped.merge_adapter()
    with wrapped.disable_adapter():
        got = sent(model)
    wrapped.unmerge_adapter()
    theirs = {name: p for name, p in wrapped.get_base_model().named_parameters() if "base_layer" in name}
    assert got.keys() == want.keys()
    for name, weight in want.items():
        torch.testing.assert_close(got[name], weight, rtol=0, atol=1e-6)
    assert len(theirs) > 0 and all(
        torch.equal(got[name.replace("base_layer.", "")], p) for name, p in theirs.items()
    ), "as peft takes them out"


def test_an_adapted_weight_that_is_tied_comes_beside_the_other_one() -> None:
    """peft would merge the change into both. Sent are the two weights that the adapted model computes with."""
    model = tiny_model()
    wrapped = peft.get_peft_model(model.model, peft.LoraConfig(r=4, target_modules=["embed_tokens"]))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.3)
    embeddings, base = model.model.get_input_embeddings(), tiny_model().model.get_input_embeddings().weight
    every = torch.arange(len(base))
    got = sent(model)
    names = ("model.language_model.embed_tokens.weight", "lm_head.weight")
    torch.testing.assert_close(got[names[0]], embeddings(every), rtol=0, atol=1e-6)
    assert torch.equal(got[names[1]], base) and not torch.equal(got[names[0]], base)
    receiver = LocalEngine(tiny_model(), build_tokenizer(["x"]), -1, own_weights=True)
    with pytest.raises(ValueError, match=r"expected one of the \d+ weights left, got 'lm_head.weight'"):
        receiver.sync_weights(weight_buckets(model))  # its own are tied: it would have to give up one of the two
    gc.collect()
    assert torch.is_grad_enabled(), "what is left of the buckets touches no other code"
    assert wrapped.merge_and_unload().lm_head.weight.sub(base).abs().max() > 0.1, "what peft would do"


def frozen_tower() -> PackedModel:
    model = tiny_model()
    model.model.model.visual.requires_grad_(False)
    return model


@pytest.mark.parametrize(
    "make",
    [frozen_tower, lambda: adapted([], False)[0], lambda: adapted(["embed_tokens", "lm_head"], True)[0]],
    ids=["frozen tower", "adapters", "adapters and a head"],
)
def test_what_no_step_changes_is_sent_once(make: Callable[[], PackedModel]) -> None:
    """The rollout's copy then has every weight all the same; one that has none yet says which it misses."""
    model = make()
    copied, fresh = (LocalEngine(plain_copy(model, 3), build_tokenizer(["x"]), -1, own_weights=True) for _ in "ab")
    copied.sync_weights(weight_buckets(model))
    before = sent(model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.rand_like(parameter))
    want = sent(model)
    again = [name for bucket in weight_buckets(model, trained_only=True) for name in bucket]
    assert again == [name for name in want if not torch.equal(want[name], before[name])]
    assert 0 < len(again) < len(want)
    copied.sync_weights(weight_buckets(model, trained_only=True))
    got = dict(copied.model.model.named_parameters())
    assert got.keys() == want.keys() and all(torch.equal(got[name], want[name]) for name in want)
    with pytest.raises(ValueError, match="expected every weight, got none for"):
        fresh.sync_weights(weight_buckets(model, trained_only=True))
