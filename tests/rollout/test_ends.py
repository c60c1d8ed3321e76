"""What ends a completion, and what a record that comes twice in a call gets."""

from __future__ import annotations

import numpy as np
import pytest
from tiny import random_sample, tiny_model

from univg_fast.data.tokenizer import build_tokenizer
from univg_fast.model import PackedModel
from univg_fast.rollout import LocalEngine, Sampling, stop_ids
from univg_fast.rollout.local import LOOK_EVERY
from univg_fast.structs import Completion, Sample


@pytest.fixture(scope="module")
def model() -> PackedModel:
    return tiny_model()


@pytest.fixture(scope="module")
def sample() -> Sample:
    return random_sample(np.random.default_rng(0), [(4, 6)], "a")


def tokens(group: list[Completion]) -> list[list[int]]:
    return [c.token_ids.tolist() for c in group]


@pytest.mark.parametrize("several", [True, False])
def test_every_end_of_the_generation_config_ends_a_completion(sample: Sample, several: bool) -> None:
    model, tokenizer, how = tiny_model(), build_tokenizer(["any text"]), Sampling(24)
    (free,) = LocalEngine(model, tokenizer, -1).generate([sample], 4, how)
    end = int(free[0].token_ids[7])
    model.model.generation_config.eos_token_id = [tokenizer.eos_token_id, end] if several else end
    assert stop_ids(model.model, tokenizer.eos_token_id) == (tokenizer.eos_token_id, end)
    (ended,) = LocalEngine(model, tokenizer).generate([sample], 4, how)
    first = tokens(free)[0].index(end) + 1
    assert tokens(ended)[0] == tokens(free)[0][:first] and ended[0].finish == "stop"
    assert ended[0].text == tokenizer.decode(free[0].token_ids[: first - 1])
    assert all(end not in ids[:-1] for ids in tokens(ended))
    assert stop_ids(object(), 5) == (5,)


@pytest.mark.parametrize("cache_gib", [8.0, 1e-9], ids=["together", "one at a time"])
def test_a_record_that_comes_twice_is_sampled_twice(model: PackedModel, sample: Sample, cache_gib: float) -> None:
    engine = LocalEngine(model, build_tokenizer(["any text"]), -1, cache_gib=cache_gib)
    once, again = engine.generate([sample, sample], 3, Sampling(12))
    assert len({tuple(ids) for ids in tokens(once) + tokens(again)}) == 6
    assert tokens(once) == tokens(engine.generate([sample], 3, Sampling(12))[0])
    assert tokens(again) == tokens(engine.generate([sample], 3, Sampling(12), None, [1])[0]), "as on another rank"


def test_no_generations_are_refused(model: PackedModel, sample: Sample) -> None:
    with pytest.raises(ValueError, match="num_generations >= 1, got 0"):
        LocalEngine(model, build_tokenizer(["any text"])).generate([sample], 0, Sampling(4))


def test_a_rank_without_samples_has_no_completions(model: PackedModel) -> None:
    """As one whose records of the step were all bad."""
    assert LocalEngine(model, build_tokenizer(["any text"])).generate([], 4, Sampling(4)) == []


@pytest.mark.parametrize("cache_gib", [8.0, 1e-9], ids=["together", "one at a time"])
def test_a_rollout_that_is_asked_to_stop_returns_at_the_next_look(
    model: PackedModel, sample: Sample, cache_gib: float
) -> None:
    tokenizer, how = build_tokenizer(["any text"]), Sampling(400)
    asked = iter([False, True, True])
    engine = LocalEngine(model, tokenizer, -1, cache_gib=cache_gib, should_stop=lambda: next(asked))
    first, second = engine.generate([sample, sample], 3, how)
    assert [len(ids) for ids in tokens(first)] == [1 + 2 * LOOK_EVERY] * 3
    assert len(second) == (3 if cache_gib > 1 else 0), "a prompt that was not begun has no completions"
