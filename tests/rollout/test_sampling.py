"""How tokens are drawn and where completions end, against definitions in a line or two."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast, TopKLogitsWarper, TopPLogitsWarper

from univg_fast.data.tokenizer import build_tokenizer
from univg_fast.rollout.sampling import Sampling, choose, draw, keep_top, uniforms
from univg_fast.rollout.stopping import Stopper

BELOW_ONE = 1 - 2**-53


def test_top_k_and_top_p_are_those_of_transformers() -> None:
    logits = torch.randn(5, 50, generator=torch.Generator().manual_seed(0)) * 3
    want = TopPLogitsWarper(0.8)(None, TopKLogitsWarper(12)(None, logits))
    assert torch.equal(keep_top(logits, 12, 0.8), want)
    assert torch.equal(keep_top(logits, 0, 1.0), logits)


@pytest.mark.parametrize("top_p", [0.5, 0.75, 0.9, 0.999])
def test_top_p_is_that_of_transformers_in_ties_and_large_vocabularies(top_p: float) -> None:
    generator = torch.Generator().manual_seed(0)
    ties = torch.tensor([[0.5, 0.25, 0.25], [0.25, 0.25, 0.5]]).log()
    for logits in (ties, 3 * torch.randn(3, 151_936, generator=generator)):
        assert torch.equal(keep_top(logits, 0, top_p), TopPLogitsWarper(top_p)(None, logits))


def test_sampling_follows_the_distribution() -> None:
    logits = torch.tensor([0.0, float("-inf"), 1.0, 2.0, float("-inf")]).expand(40_000, -1)
    tokens = draw(logits, uniforms(0, ["a"], [0], 40_000, 1)[:, 0])
    share = torch.bincount(tokens, minlength=5) / len(tokens)
    assert (share - logits[0].softmax(-1)).abs().max() < 0.01
    assert share[1] == share[4] == 0


@pytest.mark.parametrize("vocab", [1, 5, 128, 1000, 4096])
def test_draw_inverts_the_distribution_function(vocab: int) -> None:
    """But for numbers so near to a step of it that float32 sums over a block may fall on its other side."""
    generator = torch.Generator().manual_seed(vocab)
    logits = 4 * torch.randn(64, vocab, generator=generator)
    uniform = torch.rand(64, generator=generator, dtype=torch.float64)
    uniform[:2] = torch.tensor([0.0, BELOW_ONE], dtype=torch.float64)
    reached = logits.double().softmax(-1).cumsum(-1)
    reached /= reached[:, -1:].clone()
    want = torch.searchsorted(reached, uniform[:, None], right=True)[:, 0]
    near = (reached - uniform[:, None]).abs().amin(-1) < 1e-6
    got = draw(logits, uniform)
    assert (got == want)[~near | (torch.arange(64) < 2)].all() and near.sum() < 8
    assert got.min() >= 0 and got.max() < vocab


def test_what_is_banned_is_never_drawn_and_counts_in_the_log_prob() -> None:
    logits = torch.full((4, 300), -20.0)
    logits[:, [0, 1, 299]] = torch.tensor([9.0, 2.0, 9.0])
    uniform = torch.tensor([0.0, 0.3, 0.999, BELOW_ONE], dtype=torch.float64)
    banned = torch.tensor([0, 299])
    token, logprob = choose(logits.clone(), uniform, Sampling(1, temperature=0.5), banned)
    assert token.tolist()[:3] == [1, 1, 1] and 0 < token[3] < 299
    assert torch.allclose(logprob, (logits / 0.5).log_softmax(-1)[torch.arange(4), token])
    assert choose(logits.clone(), uniform, Sampling(1, temperature=0), banned)[0].tolist() == [1] * 4


@pytest.mark.parametrize(
    "wrong", [{"max_new_tokens": 0}, {"temperature": -1}, {"top_p": 0}, {"top_k": -1}, {"stop": "x"}, {"stop": ("",)}]
)
def test_wrong_settings(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="sampling"):
        Sampling(**{"max_new_tokens": 1, **wrong})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer(["the box is here </answer> and there", "née 猫"])


@pytest.mark.parametrize("strings", [(), ("</answer>",), ("猫", "box is")])
def test_a_completion_ends_with_the_token_that_completes_a_stop(
    tokenizer: PreTrainedTokenizerFast, strings: tuple[str, ...]
) -> None:
    """Whatever the looks: the shortest prefix whose text has a stop string or that ends with the stop token."""
    rng, stop = np.random.default_rng(0), tokenizer.eos_token_id
    texts = ["the box is", "</ans", "wer>", "</answer>", "née", "猫", " here", "x"]
    pieces = [np.array(tokenizer.encode(text, add_special_tokens=False)) for text in texts]
    pieces += [p[:1] for p in pieces] + [np.array([stop])]  # a part of a character, too
    stopper, ended = Stopper(tokenizer, (stop,), strings), 0
    for _ in range(100):
        ids = np.concatenate([pieces[i] for i in rng.integers(0, len(pieces), 8)])
        prefixes = (n for n in range(1, len(ids) + 1) if ids[n - 1] == stop or _has(stopper.text(ids[:n]), strings))
        want, seen, got = next(prefixes, None), 0, None
        while got is None and seen < len(ids):
            made = min(len(ids), seen + int(rng.integers(1, 9)))
            got = stopper.end(ids[:made], seen)
            seen = made
        assert got == want
        ended += want is not None
    assert ended > 10


def _has(text: str, strings: tuple[str, ...]) -> bool:
    return any(s in text for s in strings)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("how", [Sampling(1), Sampling(1, 0.0), Sampling(1, top_k=9), Sampling(1, 1.0, 9, 0.9)])
def test_memory_of_a_step_is_counted(how: Sampling, dtype: torch.dtype, tmp_path: Path) -> None:
    """As much as is allocated at once, and not several times that: `rollout.cache_gib` goes by it."""
    rows, vocab = 8, 30_001
    head, hidden = torch.nn.Linear(4, vocab, bias=False, dtype=dtype), torch.zeros(rows, 4, dtype=dtype)
    uniform, banned = torch.rand(rows, dtype=torch.float64), torch.tensor([3])
    with torch.no_grad(), torch.profiler.profile(profile_memory=True) as profile:
        choose(head(hidden), uniform, how, banned)
    profile.export_chrome_trace(str(tmp_path / "trace.json"))
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    held = sorted((e["ts"], e["args"]["Bytes"]) for e in events if e.get("name") == "[memory]")
    peak = max(np.cumsum([size for _, size in held])) / (rows * vocab)
    assert peak <= how.bytes_per_logit <= 2 * peak
