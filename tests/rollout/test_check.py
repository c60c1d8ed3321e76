"""The check before the first step lets a sound engine pass and says what is wrong with the others."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from tiny import random_sample, tiny_model
from transformers import PreTrainedTokenizerFast

from univg_fast.data.tokenizer import build_tokenizer
from univg_fast.loss import logprob_head
from univg_fast.model import ImageFeatures, PackedModel
from univg_fast.model.families import qwen2_vl
from univg_fast.packing import build_row
from univg_fast.rollout import LocalEngine, RolloutEngine, Sampling, check_rollout
from univg_fast.rollout.decode import Decoder
from univg_fast.structs import Completion, Group, Sample
from univg_fast.train.zero import weight_buckets

SAMPLE = random_sample(np.random.default_rng(0), [(8, 8), (4, 6)])


@pytest.fixture(scope="module")
def model() -> PackedModel:
    return tiny_model()


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer(["any text"])


def training(model: PackedModel, temperature: float = 1.0) -> Callable[[Group], np.ndarray]:
    """The log-probs that an update computes."""

    def logprobs(group: Group) -> np.ndarray:
        row = build_row([group], model.family)
        with torch.no_grad():
            return model(row, logprob_head(row, temperature)).numpy()

    return logprobs


def check(engine: RolloutEngine, model: PackedModel, temperature: float = 1.0, trained_at: float | None = None) -> str:
    logprobs = training(model, temperature if trained_at is None else trained_at)
    return check_rollout(engine, SAMPLE, temperature, logprobs, torch.float32, 2)


def test_a_sound_engine_passes(model: PackedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    assert check(LocalEngine(model, tokenizer), model, 0.8).startswith("rollout: 4 different samples of 4, ")


def test_another_temperature_is_found(model: PackedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match="another temperature"):
        check(LocalEngine(model, tokenizer), model, 0.8, trained_at=1.0)


def test_stale_weights_are_found_and_a_sync_repairs_them(
    model: PackedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    stale = copy.deepcopy(model)
    for parameter in stale.parameters():
        parameter.data.mul_(1.001)
    engine = LocalEngine(stale, tokenizer, own_weights=True)
    with pytest.raises(ValueError, match=r"other weights \(sync_weights\)"):
        check(engine, model)
    engine.sync_weights(weight_buckets(model))
    check(engine, model)


def test_weights_that_do_not_fit_are_named(model: PackedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    engine = LocalEngine(copy.deepcopy(model), tokenizer, own_weights=True)
    with pytest.raises(ValueError, match="got 'visual.nothing'"):
        engine.sync_weights([{"visual.nothing": torch.zeros(1)}])
    some = next(iter(weight_buckets(model, max_bytes=1)))
    with pytest.raises(ValueError, match="got none for .*norm"):
        engine.sync_weights([some])


class Stuck(LocalEngine):
    """Gives its first completion G times, as one that forgot to seed its rows apart."""

    def generate(
        self,
        samples: Sequence[Sample],
        num_generations: int,
        sampling: Sampling,
        features: Sequence[ImageFeatures] | None = None,
        repeats: Sequence[int] | None = None,
    ) -> list[list[Completion]]:
        return [[group[0]] * num_generations for group in super().generate(samples, num_generations, sampling)]


def test_equal_samples_are_found_where_the_model_would_not_give_them(
    model: PackedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(ValueError, match=r"the same one 4 times, which has a probability of e\^-[0-9]"):
        check(Stuck(model, tokenizer), model)
    certain = copy.deepcopy(model)  # of a model as sure of itself as this, equal samples are to be expected
    certain.model.model.language_model.norm.weight.data.mul_(2000)
    found = check_rollout(Stuck(certain, tokenizer), SAMPLE, 1.0, training(certain), torch.bfloat16, 2)
    assert found.startswith("rollout: 1 different samples of 4")


class Ahead(LocalEngine):
    """Its completions go on one position too late."""

    def _prefill(self, *given: Any) -> Decoder:
        decoder = super()._prefill(*given)
        decoder.position.add_(1)
        return decoder


@pytest.mark.parametrize(("temperature", "layers"), [(1.0, 3), (0.5, 3), (1.0, 20)])
def test_bfloat16_is_judged_by_what_rounding_does(
    tokenizer: PreTrainedTokenizerFast, temperature: float, layers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To a model whose logits are as large as published ones': more in a deep one."""
    monkeypatch.setitem(qwen2_vl.SMALL["text_config"], "num_hidden_layers", layers)
    policy = tiny_model()
    policy.model.model.language_model.norm.weight.data.mul_(6)
    for parameter in policy.parameters():
        parameter.data = parameter.data.bfloat16()
    stale = copy.deepcopy(policy)
    for parameter in stale.parameters():
        parameter.data.mul_(1.05)

    def logprobs(group: Group) -> np.ndarray:
        row = build_row([group], policy.family)
        with torch.no_grad():
            return policy(row, logprob_head(row, temperature)).float().numpy()

    for k in range(4 if layers < 9 else 2):
        sample = random_sample(np.random.default_rng(k), [(8, 8), (4, 6)], f"u{k}")
        check_rollout(LocalEngine(policy, tokenizer, -1), sample, temperature, logprobs, torch.bfloat16, layers)
        for wrong in (LocalEngine(stale, tokenizer, -1), Ahead(policy, tokenizer, -1)):
            with pytest.raises(ValueError, match="in the mean, as training's own differ by"):
                check_rollout(wrong, sample, temperature, logprobs, torch.bfloat16, layers)
