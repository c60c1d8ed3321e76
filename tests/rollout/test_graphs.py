"""CUDA graphs: a captured decode step gives what the same steps launched one by one give."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from tiny import FAMILIES, random_sample, tiny_model

from univg_fast.data.tokenizer import build_tokenizer
from univg_fast.rollout import LocalEngine, Sampling


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("family", FAMILIES)
def test_captured_steps_give_the_same_tokens_and_rows_still_leave(family: str) -> None:
    rng, model, tokenizer = np.random.default_rng(0), tiny_model(family).cuda(), build_tokenizer(["x"])
    grids = [[(8, 8), (4, 6)], [(6, 6)], []]
    samples = [random_sample(rng, grid, f"u{i}", model.family.patch_size) for i, grid in enumerate(grids)]
    how = Sampling(60, seed=2)
    free = LocalEngine(model, tokenizer, -1, static=False).generate(samples, 6, how)
    stop = Counter(t for g in free for c in g for t in set(c.token_ids.tolist())).most_common(1)[0][0]
    want = LocalEngine(model, tokenizer, stop, static=False).generate(samples, 6, how)
    got = LocalEngine(model, tokenizer, stop).generate(samples, 6, how)
    for a, b in zip((c for g in got for c in g), (c for g in want for c in g), strict=True):
        assert a.token_ids.tolist() == b.token_ids.tolist() and a.finish == b.finish
        assert np.abs(a.logprobs - b.logprobs).max() <= 1e-4
    assert sum(len(c.token_ids) < 20 for g in want for c in g) > 9, "the test wants half of the rows to leave"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_step_is_captured_and_asks_the_device_for_nothing() -> None:
    rng, model = np.random.default_rng(0), tiny_model().cuda()
    engine = LocalEngine(model, build_tokenizer(["x"]), -1)
    with torch.no_grad():
        decoder = engine._prefill([random_sample(rng, [(8, 8)])], torch.rand(1, 4, 12), Sampling(12), None)
        decoder.run(2)
        assert decoder.graph is not None
        torch.cuda.set_sync_debug_mode("error")
        try:
            decoder.run(9)
        finally:
            torch.cuda.set_sync_debug_mode("default")
