"""What the faces of attention write and multiply: no more than the row's own lengths ask for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from tests.model.attention_rows import DIM, FACES, HEADS, KV_HEADS, Written, draw, spans_of, total, with_gradients
from univg_fast.model.attention import shared_prefix_attention
from univg_fast.model.attention.grouped import grouped_attention
from univg_fast.packing.layout import build_layout

LOGNORMAL = np.random.default_rng(0).lognormal(4.5, 0.6, (6, 16)).astype(int) + 1


@pytest.mark.parametrize(
    "groups",
    [
        [(60, [8] * 7 + [400])],
        [(60, [8] * 7 + [400]), (60, [8] * 8), (60, [3, 0, 2])],
        [(60 + i // 2, lengths.tolist()) for i, lengths in enumerate(LOGNORMAL)],
    ],
    ids=["one runs away", "beside others of its prompt's length", "lognormal"],
)
def test_a_response_costs_its_own_length(groups: list[tuple[int, list[int]]]) -> None:
    """Not that of its longest sibling; and the result is the dense mask's."""
    spans = spans_of(groups)
    layout = build_layout(spans, "grouped")
    prompts, tokens = sum(prompt for prompt, _ in groups), total(spans)
    assert len(layout.gather) - prompts <= 1.3 * (tokens - prompts)
    assert len(layout.buckets) == len({prompt for prompt, _ in groups})
    drawn = draw(tokens)
    want = with_gradients("dense", spans, drawn)
    for got, truth in zip(with_gradients("grouped", spans, drawn), want, strict=True):
        torch.testing.assert_close(got, truth, rtol=1e-11, atol=1e-11)


def test_even_lengths_are_one_batch() -> None:
    (bucket,) = build_layout(spans_of([(5, [4, 4, 4])] * 3), "grouped").buckets
    assert bucket.prompts == (3, 5) and [c.counts for c in bucket.classes] == [(3, 3, 3)]


def written(face: str, groups: list[tuple[int, list[int]]]) -> Written:
    spans = spans_of(groups)
    drawn = draw(total(spans), torch.float32)
    layout = build_layout(spans, face)
    with Written() as seen:
        out = shared_prefix_attention(None, *drawn[:3], None, None, layout)[0]
        torch.autograd.grad(out, drawn[:3], drawn[3])
    return seen


@pytest.mark.parametrize("face", FACES)
def test_nothing_of_the_rows_length_squared_exists(face: str) -> None:
    groups = [(30 + i, [20, 25, 30]) for i in range(16)]
    square = total(spans_of(groups)) ** 2
    assert written(face, groups).largest < square / 5
    assert written("dense", groups).largest >= square  # the control


@pytest.mark.parametrize("face", FACES)
def test_cost_does_not_grow_with_the_number_of_groups(face: str) -> None:
    """Rows of one length in 4 groups and in 24, all of different shapes: a slice for each would write 6 times that."""
    few, many = [(120 + i, [15 + i, 15]) for i in range(4)], [(20 + i % 9, [2 + i % 3, 3]) for i in range(24)]
    few[0] = (few[0][0] + total(spans_of(many)) - total(spans_of(few)), few[0][1])
    assert total(spans_of(few)) == total(spans_of(many))
    assert written(face, many).all < 1.3 * written(face, few).all


class Asked(TorchFunctionMode):
    """Heads of queries and of keys, and whether they are grouped, of each call of torch's attention, not computed."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[int, int, bool]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        q, k, v = args
        assert k.shape[1] == v.shape[1]
        self.calls.append((q.shape[1], k.shape[1], kwargs["enable_gqa"]))
        return torch.empty_like(q)


@pytest.mark.parametrize(
    ("device", "dtype", "prompts", "responses"),
    [
        ("cuda", torch.float32, (HEADS, False), (HEADS, False)),
        ("cuda", torch.bfloat16, (KV_HEADS, True), (HEADS, False)),
        ("cpu", torch.float32, (KV_HEADS, True), (KV_HEADS, True)),
    ],
)
def test_what_torch_s_kernels_are_asked_for(
    device: str, dtype: torch.dtype, prompts: tuple[int, bool], responses: tuple[int, bool]
) -> None:
    """On CUDA grouped heads only where a kernel knows them: without a mask and not in fp32. Tensors without data."""
    layout = build_layout([(0, 6, [4, 4, 4])], "grouped")
    with FakeTensorMode(), Asked() as asked:
        q, k, v = (torch.empty(18, h, DIM, device=device, dtype=dtype) for h in (HEADS, KV_HEADS, KV_HEADS))
        out = grouped_attention(q, k, v, layout)
    assert out.shape == q.shape and asked.calls == [(HEADS, *prompts), (HEADS, *responses)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_scores_are_written_on_a_gpu(dtype: torch.dtype) -> None:
    """Forward and backward with grouped heads: the peak is far from all scores of the prompt, or of the responses."""
    spans, heads, dim = [(0, 4096, [2048, 2048])], 8, 64
    qkv = [torch.randn(8192, h, dim, device="cuda", dtype=dtype, requires_grad=True) for h in (heads, 2, 2)]
    layout = build_layout(spans, "grouped").to("cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    out = grouped_attention(*qkv, layout)
    torch.autograd.grad(out, qkv, torch.ones_like(out))
    assert torch.cuda.max_memory_allocated() - before < heads * 4096**2 * out.element_size() / 2
