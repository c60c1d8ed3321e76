"""The host makes a prefill's rows and goes on: it never waits for what the device has still to do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny import FAMILIES, random_sample, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode

from univg_fast.data.tokenizer import build_tokenizer
from univg_fast.rollout import LocalEngine, Sampling, batches


class Copies(TorchDispatchMode):
    """What is copied from the host to the device, and whether the host may go on meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[torch.Tensor, bool]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and out.is_meta and not args[0].is_meta:
            self.seen.append((args[0], bool((kwargs or {}).get("non_blocking"))))
        return out


@pytest.mark.parametrize("family", FAMILIES)
def test_the_host_waits_for_nothing_of_a_prefill(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device, whose tensors refuse to be read. What a GPU copies lies in page-locked memory besides."""
    rng, model = np.random.default_rng(0), tiny_model(family).to("meta", torch.bfloat16)
    samples = [random_sample(rng, grid, patch_size=model.family.patch_size) for grid in ([(4, 6)], [], [(8, 8)])]
    monkeypatch.setattr(batches, "PREFILL_TOKENS", 20)
    engine = LocalEngine(model, build_tokenizer(["any text"]), -1)
    with torch.no_grad(), Copies() as copies:
        decoder = engine._prefill(samples, torch.rand(3, 4, 9), Sampling(9, top_k=5), None)
    assert decoder.tokens.is_meta and decoder.tokens.shape == (12, 9)
    assert len(copies.seen) > 10 and all(goes_on for _, goes_on in copies.seen)
    pixels = [x for x, _ in copies.seen if x.shape[1:] == (model.family.patch_dim,)]
    assert {x.dtype for x in pixels} == {torch.bfloat16}, "half of the bytes"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_gpu_is_not_waited_for(family: str) -> None:
    rng, model = np.random.default_rng(0), tiny_model(family).cuda()
    samples = [random_sample(rng, grid, patch_size=model.family.patch_size) for grid in ([(4, 6)], [(8, 8)])]
    engine, how = LocalEngine(model, build_tokenizer(["any text"]), -1), Sampling(9, top_k=5)
    with torch.no_grad():
        engine._prefill(samples, torch.rand(2, 4, 9), how, None)  # kernels are compiled, buffers made
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            engine._prefill(samples, torch.rand(2, 4, 9), how, None)
        finally:
            torch.cuda.set_sync_debug_mode("default")
