"""Every face of attention against the dense mask, and that against its definition: values, gradients, leaks, memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import FAMILIES, random_group, tiny_model

from tests.model.attention_rows import DIM, FACES, Written, attend, draw, spans_of, total, with_gradients
from univg_fast.model.attention import shared_prefix_attention
from univg_fast.model.attention.grouped import grouped_attention
from univg_fast.model.attention.paths import gather_paths
from univg_fast.packing import build_row
from univg_fast.packing.layout import build_layout
from univg_fast.packing.paths import build_paths

GROUPS = st.lists(st.tuples(st.integers(1, 12), st.lists(st.integers(0, 7), max_size=4)), min_size=1, max_size=4)
EXACT = (*FACES, "triton")  # on the CPU that is its specification: the way there and back is what is tested
MIXED = [(7, [3, 0, 5]), (1, [1]), (6, []), (7, [4, 4, 2]), (1, [2, 6]), (9, [1] * 4)]


@settings(deadline=None)
@given(GROUPS)
def test_the_dense_mask_is_its_definition(groups: list[tuple[int, list[int]]]) -> None:
    spans = spans_of(groups)
    owner = [(g, r) for g, (p, rs) in enumerate(groups) for r, n in [(-1, p), *enumerate(rs)] for _ in range(n)]
    sees = [
        [k <= q and owner[k] in ((owner[q][0], -1), owner[q]) for k in range(len(owner))] for q in range(len(owner))
    ]
    assert build_layout(spans, "dense").mask.tolist() == sees


@settings(deadline=None)
@given(GROUPS)
def test_causal_from_the_bottom_right_over_paths_is_the_dense_mask(groups: list[tuple[int, list[int]]]) -> None:
    """What a varlen library is told, without any attention; the same mask as the libraries build from it."""
    spans = spans_of(groups)
    layout, found = build_layout(spans, "varlen"), torch.zeros(total(spans), total(spans), dtype=torch.bool)
    assert layout.cu_seqlens_q.dtype == layout.cu_seqlens_k.dtype == torch.int32
    cu_q, cu_k = layout.cu_seqlens_q.tolist(), layout.cu_seqlens_k.tolist()
    assert (max(layout.lengths_q), max(layout.lengths_k)) == (layout.max_q, layout.max_k)
    for s in range(len(cu_q) - 1):
        queries, keys = cu_q[s + 1] - cu_q[s], cu_k[s + 1] - cu_k[s]
        assert (queries, keys) == (layout.lengths_q[s], layout.lengths_k[s])
        for i in range(queries):
            found[cu_q[s] + i, layout.index[cu_k[s] : cu_k[s] + keys - queries + i + 1]] = True
    assert cu_q[-1] == total(spans)
    assert torch.equal(found, build_layout(spans, "dense").mask)


@pytest.mark.parametrize("face", EXACT)
@settings(deadline=None)
@given(groups=GROUPS, scaling=st.sampled_from([None, 0.2]))
def test_equals_the_dense_mask(face: str, groups: list[tuple[int, list[int]]], scaling: float | None) -> None:
    spans = spans_of(groups)
    drawn = draw(total(spans))
    want = with_gradients("dense", spans, drawn, scaling=scaling)
    for got, truth in zip(with_gradients(face, spans, drawn, scaling=scaling), want, strict=True):
        torch.testing.assert_close(got, truth, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("face", FACES)
def test_rounding_of_a_dtype_only(face: str, dtype: torch.dtype) -> None:
    """No worse than the dense mask in the same dtype, both against fp64, but for one rounding."""
    spans = spans_of(MIXED)
    drawn = draw(total(spans), dtype)
    truth = with_gradients("dense", spans, [x.detach().double().requires_grad_() for x in drawn])
    got, dense = (with_gradients(f, spans, drawn) for f in (face, "dense"))
    for name, a, b, exact in zip(("out", "q", "k", "v"), got, dense, truth, strict=True):
        error, allowed = ((x.double() - exact).norm() / exact.norm() for x in (a, b))
        assert error <= 1.5 * allowed + torch.finfo(dtype).eps, (name, float(error), float(allowed))


@pytest.mark.parametrize("face", [*FACES, "dense"])
@pytest.mark.parametrize("changed", range(len(MIXED)))
def test_a_group_sees_no_other(face: str, changed: int) -> None:
    """Other values in one group: outputs and gradients of every other one stay equal to the last bit."""
    spans = spans_of(MIXED)
    drawn, others = draw(total(spans), torch.float32), draw(total(spans), torch.float32, seed=1)
    start, prompt, responses = spans[changed]
    mine = torch.zeros(total(spans), dtype=torch.bool)
    mine[start : start + prompt + sum(responses)] = True
    mixed = [
        torch.where(mine[:, None], b, a).detach().requires_grad_() for a, b in zip(drawn[:3], others, strict=False)
    ]
    before, after = with_gradients(face, spans, drawn), with_gradients(face, spans, [*mixed, drawn[3]])
    for a, b in zip((before[0].transpose(1, 2), *before[1:]), (after[0].transpose(1, 2), *after[1:]), strict=True):
        assert torch.equal(a[:, :, ~mine], b[:, :, ~mine])
    assert not torch.equal(before[0][:, mine], after[0][:, mine])


@pytest.mark.parametrize("face", [*FACES, "dense"])
def test_a_response_sees_no_sibling(face: str) -> None:
    spans = spans_of([(5, [4, 4, 4])])
    drawn, others = draw(17, torch.float32), draw(17, torch.float32, seed=1)
    sibling = torch.arange(17)[:, None].clamp(9, 12) == torch.arange(17)[:, None]
    mixed = [torch.where(sibling, b, a) for a, b in zip(drawn[:3], others, strict=False)]
    before, after = attend(face, spans, drawn[:3]), attend(face, spans, mixed)
    assert torch.equal(before[:, ~sibling[:, 0]], after[:, ~sibling[:, 0]])
    assert not torch.equal(before[:, 9:13], after[:, 9:13])


def test_a_prompts_gradients_are_summed_in_fp32() -> None:
    """One rounding at the end, where adding the copies one by one in bf16 makes one each."""
    layout = build_paths([(0, 64, [3] * 16), (112, 5, [2, 2])], "paths")
    x = torch.randn(121, 2, DIM, dtype=torch.bfloat16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    grad = torch.randn(len(layout.index), 2, DIM, generator=torch.Generator().manual_seed(1)).bfloat16()
    truth = torch.zeros(121, 2, DIM, dtype=torch.float64).index_add_(0, layout.index, grad.double())
    (got,) = torch.autograd.grad(gather_paths(x, layout), x, grad)
    one_by_one = torch.zeros_like(got)
    for place, token in enumerate(layout.index.tolist()):
        one_by_one[token] += grad[place]
    (again,) = torch.autograd.grad(gather_paths(x, layout), x, grad)
    assert torch.equal(got, truth.to(torch.float32).bfloat16()) and torch.equal(got, again)
    assert (one_by_one.double() - truth).norm() > 3 * (got.double() - truth).norm()


def test_gather_in_fp64_is_index_select() -> None:
    layout = build_paths([(0, 6, [3, 2]), (11, 2, []), (13, 3, [1, 1, 1])], "paths")
    x = torch.randn(19, 2, DIM, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(len(layout.index), 2, DIM, dtype=torch.float64)
    ours, theirs = gather_paths(x, layout), x.index_select(0, layout.index)
    assert torch.equal(ours, theirs)
    (got,), (want,) = (torch.autograd.grad(y, x, grad) for y in (ours, theirs))
    torch.testing.assert_close(got, want, rtol=1e-14, atol=1e-14)


def test_without_responses_or_with_one_nothing_is_copied() -> None:
    """A single response continues its prompt: SFT rows and a rollout's prefill are plain packing."""
    spans = spans_of([(5, [3]), (4, []), (2, [0, 6])])
    layout, x = build_layout(spans, "paths"), torch.randn(20, 2, DIM)
    assert layout.lengths_q == layout.lengths_k == (8, 4, 8)
    assert gather_paths(x, layout) is x
    assert not any(bucket.classes for bucket in build_layout(spans, "grouped").buckets)


@pytest.mark.parametrize(
    ("groups", "order"),
    [([(5, [3]), (4, []), (2, [1, 1])], True), ([(5, [3]), (4, []), (2, [6])], False), ([(5, [2, 3])], False)],
    ids=["as the row", "equal lengths apart", "padded"],
)
def test_only_another_order_is_gathered(groups: list[tuple[int, list[int]]], order: bool) -> None:
    """A row whose tokens stand as the batches take them is read where it lies, with the same result to the last bit."""
    spans = spans_of(groups)
    drawn, layout = draw(total(spans), torch.float32), build_layout(spans, "grouped")
    assert (layout.gather is None) == (layout.inverse is None) == order
    with Written() as seen:
        found = with_gradients("grouped", spans, drawn)
    assert ("aten::index_select" in seen.names) == (not order)
    if order:
        q, k, v = (x[0].transpose(0, 1) for x in drawn[:3])
        there_and_back = replace(layout, gather=torch.arange(total(spans)), inverse=torch.arange(total(spans)))
        out = grouped_attention(q, k, v, there_and_back)[None]
        gathered = [out, *torch.autograd.grad(out, drawn[:3], drawn[3])]
        assert all(torch.equal(a, b) for a, b in zip(found, gathered, strict=True))


def test_a_cache_attends_by_itself_and_no_layout_is_an_error() -> None:
    class Cache:
        def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scaling: float) -> torch.Tensor:
            return q.transpose(1, 2) * layer * scaling

    *qkv, _ = draw(3)
    layer = torch.nn.Module()
    layer.layer_idx = 3
    assert torch.equal(shared_prefix_attention(layer, *qkv, None, 0.5, Cache())[0], qkv[0].transpose(1, 2) * 1.5)
    with pytest.raises(ValueError, match=r"univg_shared_prefix: expected layout="):
        shared_prefix_attention(layer, *qkv, None)


def test_an_unknown_face_is_named() -> None:
    with pytest.raises(ValueError, match=r"expected face to be one of grouped, dense, .*got 'eager'"):
        build_layout([(0, 2, [])], "eager")


@pytest.mark.parametrize("face", ["paths", "dense", "triton"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_is_the_same_by_every_face(family: str, face: str) -> None:
    """Hidden states and gradients of a whole model, whose rows differ in their layout only."""
    model, rng = tiny_model(family), np.random.default_rng(0)
    shapes: list[tuple[list[tuple[int, int]], list[int]]] = [([(4, 4)], [3, 5, 1]), ([], [2]), ([(4, 6)], [4, 4])]
    groups = [random_group(rng, grids, lengths, model.family.patch_size) for grids, lengths in shapes]
    found = []
    for name in ("grouped", face):
        model.zero_grad()
        hidden = model.hidden(build_row(groups, model.family, attention=name))
        hidden.square().sum().backward()
        found.append([hidden.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    for want, got in zip(*found, strict=True):
        assert (got - want).norm() <= 1e-5 * want.norm()
