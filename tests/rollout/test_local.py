"""The in-process engine against transformers' generate and against the training pass."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from tiny import FAMILIES, VOCAB, add_adapters, random_sample, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedTokenizerFast

from univg_fast.data.tokenizer import build_tokenizer
from univg_fast.model import ImageFeatures, PackedModel, load_model
from univg_fast.model.patches import repeat_frames
from univg_fast.packing import build_row
from univg_fast.rollout import LocalEngine, Sampling, batches, cache
from univg_fast.structs import Completion, Group, Sample
from univg_fast.train.zero import weight_buckets

NO_STOP = len(VOCAB) + 1  # never sampled: every completion runs to max_new_tokens
LONG = Sampling(40, seed=2)


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> PackedModel:
    return tiny_model(request.param)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer(["any text"])


@pytest.fixture(scope="module")
def samples(model: PackedModel) -> list[Sample]:
    rng = np.random.default_rng(0)
    grids = [[(8, 8), (4, 6)], [(6, 6)], [], [(4, 4), (8, 8), (6, 4)]]
    return [random_sample(rng, grid, f"u{i}", model.family.patch_size) for i, grid in enumerate(grids)]


@pytest.fixture(scope="module")
def free(model: PackedModel, tokenizer: PreTrainedTokenizerFast, samples: list[Sample]) -> list[list[Completion]]:
    """Completions that nothing stops."""
    return LocalEngine(model, tokenizer, NO_STOP).generate(samples, 5, LONG)


@pytest.fixture(scope="module")
def stop(free: list[list[Completion]]) -> int:
    """The token that most completions have: as the end-of-turn token it ends many, at different places."""
    return Counter(t for g in free for c in g for t in set(c.token_ids.tolist())).most_common(1)[0][0]


def untouched(model: PackedModel) -> Any:
    """transformers' own model; the weights come to it as they would to an external engine."""
    hf: Any = load_model(f"{model.family.model_type}_tiny", vocab=VOCAB)
    for bucket in weight_buckets(model, max_bytes=10**5):
        assert not hf.load_state_dict(bucket, strict=False).unexpected_keys
    return hf.eval().requires_grad_(False)


def hf_greedy(hf: Any, model: PackedModel, sample: Sample, length: int) -> np.ndarray:
    """transformers' generate for one prompt, with the same bans and no early stop."""
    hf.set_attn_implementation({"text_config": "sdpa", "vision_config": "sdpa"})
    ids = torch.from_numpy(sample.prompt_ids)[None]
    images = {}
    if len(sample.image_grid_thw):
        images = {
            "pixel_values": repeat_frames(torch.from_numpy(sample.pixel_values), model.family.temporal_patch_size),
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
    hf.model.rope_deltas = None
    return out[0, ids.shape[1] :].numpy()


def test_greedy_equals_generate(model: PackedModel, tokenizer: PreTrainedTokenizerFast, samples: list[Sample]) -> None:
    engine, hf = LocalEngine(model, tokenizer, NO_STOP), untouched(model)
    for sample, (completion,) in zip(samples, engine.generate(samples, 1, Sampling(24, temperature=0)), strict=True):
        assert completion.token_ids.tolist() == hf_greedy(hf, model, sample, 24).tolist()


@pytest.mark.parametrize("sampling", [LONG, Sampling(30, temperature=0.7, top_k=40, top_p=0.95, seed=3)])
def test_logprobs_equal_the_training_pass(
    model: PackedModel, tokenizer: PreTrainedTokenizerFast, samples: list[Sample], stop: int, sampling: Sampling
) -> None:
    groups = LocalEngine(model, tokenizer, stop).generate(samples, 4, sampling)
    row = build_row(
        [Group(s, tuple(c.token_ids for c in g)) for s, g in zip(samples, groups, strict=True)], model.family
    )

    def head(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        logp = (hidden @ weight.T / sampling.temperature).log_softmax(-1)
        return logp.gather(-1, row.target_ids[:, None])[:, 0]

    with torch.no_grad():
        trained = model(row, head).numpy()
    sampled = np.concatenate([c.logprobs for g in groups for c in g])
    assert len({len(c.token_ids) for g in groups for c in g}) > 1, "the test wants uneven lengths"
    assert np.abs(trained - sampled).max() <= 1e-4


def test_a_completion_does_not_depend_on_its_batch(
    model: PackedModel, tokenizer: PreTrainedTokenizerFast, samples: list[Sample], stop: int
) -> None:
    engine, sampling = LocalEngine(model, tokenizer, stop), Sampling(16, seed=5)
    together = engine.generate(samples, 3, sampling)
    for sample, group in zip(samples, together, strict=True):
        same(engine.generate([sample], 3, sampling), [group])


def test_samples_differ_stop_and_never_hold_placeholders(
    model: PackedModel, tokenizer: PreTrainedTokenizerFast, samples: list[Sample], stop: int
) -> None:
    groups = LocalEngine(model, tokenizer, stop).generate(samples, 8, Sampling(40, temperature=2.0, seed=1))
    completions: list[Completion] = [c for g in groups for c in g]
    assert len({tuple(c.token_ids.tolist()) for c in completions}) == len(completions)
    assert {c.finish for c in completions} == {"stop", "length"}
    for c in completions:
        assert (c.finish == "stop") == (c.token_ids[-1] == stop)
        assert stop not in c.token_ids[:-1]
        assert not set(c.token_ids.tolist()) & set(model.family.banned_token_ids)


def same(got: list[list[Completion]], want: list[list[Completion]]) -> None:
    """Equal tokens and ends, and log-probs to rounding."""
    for a, b in zip((c for g in got for c in g), (c for g in want for c in g), strict=True):
        assert a.token_ids.tolist() == b.token_ids.tolist() and (a.finish, a.text) == (b.finish, b.text)
        assert np.abs(a.logprobs - b.logprobs).max() <= 1e-5


def test_rows_that_leave_and_static_buffers_change_nothing(
    model: PackedModel,
    tokenizer: PreTrainedTokenizerFast,
    samples: list[Sample],
    free: list[list[Completion]],
    stop: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rows leave at every look, with static buffers only when half of them have finished."""
    got = LocalEngine(model, tokenizer, stop).generate(samples, 5, LONG)
    same(LocalEngine(model, tokenizer, stop, static=True).generate(samples, 5, LONG), got)
    monkeypatch.setattr(cache, "FIRST", 5)  # a step looks at 5, 10, 20, and 40 own positions
    same(LocalEngine(model, tokenizer, stop, static=True).generate(samples, 5, LONG), got)
    for a, b in zip((c for g in got for c in g), (c for g in free for c in g), strict=True):
        n = len(a.token_ids)  # rows that stay do not notice others leave
        assert a.token_ids.tolist() == b.token_ids[:n].tolist()
        assert np.abs(a.logprobs - b.logprobs[:n]).max() <= 1e-5
        assert n == 40 or a.token_ids[-1] == stop
    left = [sum(len(c.token_ids) > 16 for c in g) for g in got]
    assert len(set(left)) > 1, "the test wants prompts with unequal numbers of rows left"


def test_a_static_step_asks_the_device_for_nothing_and_keeps_its_shapes(
    model: PackedModel, tokenizer: PreTrainedTokenizerFast, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a CUDA graph can hold it: the same operations on the same shapes every time, none of them a question.

    But when the own positions that it looks at are full: then it looks at twice as many.
    """
    monkeypatch.setattr(cache, "FIRST", 4)
    engine = LocalEngine(model, tokenizer, NO_STOP, static=True)
    with torch.no_grad():
        decoder = engine._prefill(samples, torch.rand(len(samples), 3, 9), Sampling(9, top_k=10, top_p=0.9), None)
        steps = []
        assert all(x.is_contiguous() for pair in decoder.cache.prompts.values() for x in pair), "else steps copy them"
        for _ in range(8):
            with Recorder() as recorder:
                decoder.run(1)
            steps.append(recorder.calls)
    assert steps[0] == steps[1] == steps[2] == steps[3] != steps[4] == steps[5] == steps[6] == steps[7]
    questions = {"_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select"}
    assert len(steps[0]) > 100 and not questions & {name for name, _ in steps[0]}


class Recorder(TorchDispatchMode):
    """The operations that run inside, with the shapes they are given."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, list[tuple[int, ...]]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        shapes = [tuple(x.shape) for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        self.calls.append((func._schema.name.partition("::")[2], shapes))
        return func(*args, **(kwargs or {}))


def test_batches_that_fit_the_cache_change_nothing(
    model: PackedModel, tokenizer: PreTrainedTokenizerFast, samples: list[Sample]
) -> None:
    sampling, features = Sampling(12, seed=4), encode(model, samples)
    engine = LocalEngine(model, tokenizer, NO_STOP)
    want = engine.generate(samples, 3, sampling)
    same(engine.generate(samples, 3, sampling, features), want)
    small = LocalEngine(model, tokenizer, NO_STOP, cache_gib=1e-9)  # one prompt at a time
    same(small.generate(samples, 3, sampling), want)
    same(small.generate(samples, 3, sampling, features), want)


def test_a_prefill_in_short_rows_changes_nothing(
    model: PackedModel,
    tokenizer: PreTrainedTokenizerFast,
    samples: list[Sample],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sampling, features = Sampling(12, seed=4), encode(model, samples)
    engine, lengths = LocalEngine(model, tokenizer, NO_STOP), [len(s.prompt_ids) for s in samples]
    want, widths = engine.generate(samples, 3, sampling), []
    layer = model.model.model.language_model.layers[0].mlp
    monkeypatch.setattr(batches, "PREFILL_TOKENS", sum(lengths[1:3]))
    hook = layer.register_forward_pre_hook(lambda _, args: widths.append(args[0].shape[1]))
    got = [engine.generate(samples, 3, sampling, given) for given in (None, features)]
    hook.remove()
    same(got[0], want)
    same(got[1], want)
    rows = [lengths[0], sum(lengths[1:3]), lengths[3]]
    assert [width for width in widths if width > 1] == 2 * rows, "the others are decode steps"


def test_stop_strings_end_a_completion_with_the_token_that_completes_them(
    model: PackedModel, tokenizer: PreTrainedTokenizerFast, samples: list[Sample]
) -> None:
    engine = LocalEngine(model, tokenizer, NO_STOP)
    free = [c for g in engine.generate(samples, 4, Sampling(24, seed=8)) for c in g]
    strings = (free[0].text[5:8], free[-1].text[9:11])
    stopped = [c for g in engine.generate(samples, 4, Sampling(24, seed=8, stop=strings)) for c in g]
    for a, b in zip(stopped, free, strict=True):
        n = len(a.token_ids)
        assert a.token_ids.tolist() == b.token_ids[:n].tolist() and len(a.logprobs) == n
        assert (a.finish == "stop") == any(s in a.text for s in strings)
        assert not any(s in str(tokenizer.decode(a.token_ids[:-1])) for s in strings)
        assert n == 24 or a.finish == "stop"
    assert stopped[0].finish == stopped[-1].finish == "stop"


def test_adapters_are_part_of_the_policy(
    model: PackedModel, tokenizer: PreTrainedTokenizerFast, samples: list[Sample]
) -> None:
    """Under peft the engine decodes with the adapters on; with them off it is the base model again.

    An external engine, here transformers, gets them merged into the weights.
    """
    policy, sampling = tiny_model(model.family.model_type), Sampling(16, temperature=0)
    engine = LocalEngine(policy, tokenizer, NO_STOP)
    base = engine.generate(samples, 2, sampling)
    wrapped = add_adapters(policy)
    adapted, hf = engine.generate(samples, 2, sampling), untouched(policy)
    assert [c.token_ids.tolist() for g in adapted for c in g] != [c.token_ids.tolist() for g in base for c in g]
    for sample, (completion, _) in zip(samples, adapted, strict=True):
        assert completion.token_ids.tolist() == hf_greedy(hf, model, sample, 16).tolist()
    with wrapped.disable_adapter():
        same(engine.generate(samples, 2, sampling), base)


def encode(model: PackedModel, samples: list[Sample]) -> list[ImageFeatures]:
    """Of each sample's images."""
    row = build_row([Group(s, ()) for s in samples], model.family)
    counts = [int((s.prompt_ids == model.family.image_token_id).sum()) for s in samples]
    with torch.no_grad():
        return model.encode_images(row.pixel_values, row.vision).split(counts)
