"""The in-process engine against transformers' generate and against the training pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import VOCAB, random_sample, tiny_model
from transformers import PreTrainedTokenizerFast

from univg_fast.data.tokenizer import build_tokenizer
from univg_fast.model import PackedModel
from univg_fast.model.attention import TEXT, VISION
from univg_fast.packing import build_row
from univg_fast.rollout import LocalEngine, Sampling
from univg_fast.rollout.sampling import keep_top
from univg_fast.structs import Completion, Group, Sample

NO_STOP = len(VOCAB) + 1  # never sampled: every completion runs to max_new_tokens


@pytest.fixture(scope="module")
def model() -> PackedModel:
    return tiny_model()


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer(["any text"])


@pytest.fixture
def samples() -> list[Sample]:
    rng = np.random.default_rng(0)
    grids = [[(8, 8), (4, 6)], [(6, 6)], [], [(4, 4), (8, 8), (6, 4)]]
    return [random_sample(rng, grid, uid=f"u{i}") for i, grid in enumerate(grids)]


def hf_greedy(model: PackedModel, sample: Sample, length: int) -> np.ndarray:
    """transformers' generate for one prompt, with the same bans and no early stop."""
    hf = model.model
    hf.set_attn_implementation({"text_config": "sdpa", "vision_config": "sdpa"})
    ids = torch.from_numpy(sample.prompt_ids)[None]
    images = {}
    if len(sample.image_grid_thw):
        images = {
            "pixel_values": torch.from_numpy(sample.pixel_values),
            "image_grid_thw": torch.from_numpy(sample.image_grid_thw),
        }
    out = hf.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        mm_token_type_ids=(ids == model.family.image_token_id).int(),
        max_new_tokens=length,
        do_sample=False,
        eos_token_id=None,
        suppress_tokens=list(model.family.banned_token_ids),
        **images,
    )
    hf.set_attn_implementation({"text_config": TEXT, "vision_config": VISION})
    hf.model.rope_deltas = None
    return out[0, ids.shape[1] :].numpy()


def test_greedy_equals_generate(model: PackedModel, tokenizer: PreTrainedTokenizerFast, samples: list[Sample]) -> None:
    engine = LocalEngine(model, tokenizer, stop_token_id=NO_STOP)
    for sample, (completion,) in zip(samples, engine.generate(samples, 1, Sampling(24, temperature=0)), strict=True):
        assert completion.token_ids.tolist() == hf_greedy(model, sample, 24).tolist()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_equal_the_training_pass(
    model: PackedModel, tokenizer: PreTrainedTokenizerFast, samples: list[Sample], temperature: float
) -> None:
    sampling = Sampling(20, temperature=temperature, top_k=20, top_p=0.9, seed=3)
    groups = LocalEngine(model, tokenizer, VOCAB["w3"]).generate(samples, 4, sampling)
    row = build_row(
        [Group(s, tuple(c.token_ids for c in g)) for s, g in zip(samples, groups, strict=True)], model.family
    )

    def head(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        logp = (hidden @ weight.T / temperature).log_softmax(-1)
        return logp.gather(-1, row.target_ids[:, None])[:, 0]

    with torch.no_grad():
        trained = model(row, head).numpy()
    sampled = np.concatenate([c.logprobs for g in groups for c in g])
    assert len({len(c.token_ids) for g in groups for c in g}) > 1, "the test wants uneven lengths"
    assert np.abs(trained - sampled).max() <= 1e-4


def test_a_completion_does_not_depend_on_its_batch(
    model: PackedModel, tokenizer: PreTrainedTokenizerFast, samples: list[Sample]
) -> None:
    engine, sampling = LocalEngine(model, tokenizer, VOCAB["w3"]), Sampling(16, seed=5)
    together = engine.generate(samples, 3, sampling)
    for sample, group in zip(samples, together, strict=True):
        (alone,) = engine.generate([sample], 3, sampling)
        assert [c.token_ids.tolist() for c in alone] == [c.token_ids.tolist() for c in group]


def test_samples_differ_stop_and_never_hold_placeholders(
    model: PackedModel, tokenizer: PreTrainedTokenizerFast, samples: list[Sample]
) -> None:
    stop = VOCAB["w3"]
    groups = LocalEngine(model, tokenizer, stop).generate(samples, 8, Sampling(40, temperature=2.0, seed=1))
    completions: list[Completion] = [c for g in groups for c in g]
    assert len({tuple(c.token_ids.tolist()) for c in completions}) == len(completions)
    assert {c.finish for c in completions} == {"stop", "length"}
    for c in completions:
        assert (c.finish == "stop") == (c.token_ids[-1] == stop)
        assert stop not in c.token_ids[:-1]
        assert not set(c.token_ids.tolist()) & set(model.family.banned_token_ids)


def test_top_k_and_top_p_are_those_of_transformers() -> None:
    from transformers import TopKLogitsWarper, TopPLogitsWarper

    logits = torch.randn(5, 50, generator=torch.Generator().manual_seed(0)) * 3
    want = TopPLogitsWarper(0.8)(None, TopKLogitsWarper(12)(None, logits))
    assert torch.equal(keep_top(logits, 12, 0.8), want)
    assert torch.equal(keep_top(logits, 0, 1.0), logits)


def test_sampling_follows_the_distribution(model: PackedModel) -> None:
    from univg_fast.rollout.sampling import draw, uniforms

    logits = torch.tensor([0.0, float("-inf"), 1.0, 2.0, float("-inf")]).expand(40_000, -1)
    tokens = draw(logits, uniforms(0, ["a"], 40_000, 1)[:, 0])
    share = torch.bincount(tokens, minlength=5) / len(tokens)
    assert (share - logits[0].softmax(-1)).abs().max() < 0.01
    assert share[1] == share[4] == 0
