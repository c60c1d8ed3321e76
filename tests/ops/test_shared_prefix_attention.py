"""`shared_prefix_attention`: the specification against one plain causal attention for each response, and its door."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import univg_kernels as uk
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from univg_kernels.shared_prefix_attention.layout import BLOCK
from univg_kernels.shared_prefix_attention.reference import mask

Spans = list[tuple[int, list[int]]]
ROW: Spans = [(7, [3, 0, 5]), (1, [2]), (4, []), (0, [2, 3])]
lengths = st.integers(0, BLOCK + 10)
rows = st.lists(st.tuples(lengths, st.lists(lengths, max_size=3)), min_size=1, max_size=2)


def inputs(tokens: int, heads: int = 4, kv_heads: int = 2, dim: int = 8, **options: Any) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(tokens)
    return tuple(torch.randn(tokens, n, dim, generator=g, **options) for n in (heads, kv_heads, kv_heads))


def one_by_one(query: Tensor, key: Tensor, value: Tensor, spans: Spans) -> Tensor:
    """torch's attention over `prompt + response`, written out as a sequence of its own for each response."""

    def plain(index: Tensor) -> Tensor:
        q, k, v = (x[index].transpose(0, 1)[None] for x in (query, key, value))
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)[0].transpose(0, 1)

    out, at = [], 0
    for prompt, responses in spans:
        begin = torch.arange(at, at + prompt)
        out.append(plain(begin))
        at += prompt
        for n in responses:
            out.append(plain(torch.cat([begin, torch.arange(at, at + n)]))[prompt:])
            at += n
    return torch.cat(out)


def test_it_equals_a_sequence_for_each_response() -> None:
    layout = uk.shared_prefix(ROW)
    qkv = tuple(x.requires_grad_() for x in inputs(len(layout.segment_start), dtype=torch.float64))
    got, want = uk.shared_prefix_attention(*qkv, layout), one_by_one(*qkv, ROW)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    slope = torch.rand_like(want)
    for x, y in zip(*(torch.autograd.grad(o, qkv, slope) for o in (got, want)), strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-12)


@settings(deadline=None, max_examples=25)
@given(rows)
def test_tiles_name_every_pair_that_may_meet(spans: Spans) -> None:
    """Each token lies in one tile of queries and in one of keys, which lead it to all that the mask allows."""
    layout = uk.shared_prefix(spans)
    tokens = sum(p + sum(r) for p, r in spans)
    begin, _, prompt_end = (x.tolist() for x in layout[:3])
    seen_by_query, seen_by_key = {}, {}
    for start, end, prompt_start, stop, own in layout.query_tiles.tolist():
        assert 0 < end - start <= BLOCK
        for q in range(start, end):
            assert q not in seen_by_query
            seen_by_query[q] = {*range(prompt_start, stop), *(k for k in range(own, end) if begin[q] <= k <= q)}
    for start, end, last, is_prompt in layout.key_tiles.tolist():
        assert 0 < end - start <= BLOCK
        for k in range(start, end):
            assert k not in seen_by_key
            seen_by_key[k] = {q for q in range(start, last) if k <= q and (is_prompt or begin[q] <= k)}
            assert bool(is_prompt) == (k < prompt_end[k])
    assert len(seen_by_query) == len(seen_by_key) == tokens
    want = mask(layout)
    for q, keys in seen_by_query.items():
        assert keys == set(want[q].nonzero()[:, 0].tolist())
    for k, queries in seen_by_key.items():
        assert queries == set(want[:, k].nonzero()[:, 0].tolist())


def test_the_scale_is_one_over_the_root_of_the_channels() -> None:
    layout, qkv = uk.shared_prefix(ROW), inputs(27)
    given_scale = uk.shared_prefix_attention(*qkv, layout, scale=8**-0.5)
    assert torch.equal(uk.shared_prefix_attention(*qkv, layout), given_scale)
    assert not torch.equal(uk.shared_prefix_attention(*qkv, layout, scale=1.0), given_scale)


WRONG = [
    (dict(query=torch.zeros(27, 3, 8)), "heads of query must be a multiple of those of key, got 3 and 2"),
    (dict(key=torch.zeros(26, 2, 8)), r"key must be of shape \[27, any, 8\], got \[26, 2, 8\]"),
    (dict(value=torch.zeros(27, 1, 8)), r"value must be of shape \[27, 2, 8\], got \[27, 1, 8\]"),
    (dict(key=torch.zeros(27, 2, 8).half()), "key must be float32, got float16"),
    (dict(layout=uk.shared_prefix([(5, [])])), r"layout.segment_start must be of shape \[27\], got \[5\]; make it by"),
    (dict(layout=[(5, [])]), "layout must be a SharedPrefix, got list; make it by shared_prefix"),
    (dict(scale=0), "scale must be a finite number > 0, got 0"),
    (dict(backend="cpp"), "has no cpp face; use backend='auto' or 'reference'"),
]


@pytest.mark.parametrize("change, message", WRONG)
def test_what_is_wrong_is_said(change: dict[str, Any], message: str) -> None:
    arguments = dict(zip(("query", "key", "value"), inputs(27), strict=True)) | dict(layout=uk.shared_prefix(ROW))
    uk.shared_prefix_attention(**arguments)
    with pytest.raises(ValueError, match=f"shared_prefix_attention: {message}"):
        uk.shared_prefix_attention(**(arguments | change))


def test_wide_heads_and_negative_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="heads must be of 1 to 256 channels, got 300"):
        uk.shared_prefix_attention(*inputs(2, dim=300), uk.shared_prefix([(2, [])]))
    with pytest.raises(ValueError, match=r"lengths must be >= 0, got a prompt of 3 and \[-1\]"):
        uk.shared_prefix([(3, [-1])])
