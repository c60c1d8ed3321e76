"""Triton face of `shared_prefix_attention`: flash attention over tiles that know what they may see."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from .._triton.launch import check_dtype, launch
from .layout import BLOCK, SharedPrefix

LOG2_E = 1.4426950408889634


@triton.jit
def _load(x, rows, inside, stride, head, head_stride, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """[rows, BLOCK_D] of one head; zeros outside."""
    d = tl.arange(0, BLOCK_D)
    where = x + rows.to(tl.int64)[:, None] * stride + head.to(tl.int64) * head_stride + d[None, :]
    return tl.load(where, inside[:, None] & (d < D)[None, :], other=0.0)


@triton.jit
def _store(x, value, rows, inside, head, heads, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Into a contiguous [T, heads, D]."""
    d = tl.arange(0, BLOCK_D)
    where = x + (rows.to(tl.int64)[:, None] * heads + head) * D + d[None, :]
    tl.store(where, value.to(x.dtype.element_ty), inside[:, None] & (d < D)[None, :])


@triton.jit
def _attend(q, k, v, allowed, top, mass, acc, scale, PRECISION: tl.constexpr):
    """One block of keys more: the running maximum, mass and output. `scale` is of scores to the base 2."""
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
    scores = tl.where(allowed, scores, float("-inf"))
    new = tl.maximum(top, tl.max(scores, 1))
    safe = tl.where(new == float("-inf"), 0.0, new)
    p = tl.exp2(scores - safe[:, None])
    keep = tl.exp2(top - safe)
    acc = acc * keep[:, None] + tl.dot(p.to(v.dtype), v, input_precision=PRECISION)
    return new, mass * keep + tl.sum(p, 1), acc


@triton.jit(do_not_specialize=["heads", "share", "scale"])
def forward_kernel(query, key, value, out, log2_sum, tiles, segment_start, heads, share, scale, q_stride, q_head,
                   k_stride, k_head, v_stride, v_head, D: tl.constexpr, BLOCK_D: tl.constexpr, M: tl.constexpr,
                   N: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """One program for each tile of queries and head."""
    tile, head = tiles + tl.program_id(0) // heads * 5, tl.program_id(0) % heads
    end, prompt_end, first = tl.load(tile + 1), tl.load(tile + 3), tl.load(tile + 4)
    rows = tl.load(tile) + tl.arange(0, M)
    inside = rows < end
    begin = tl.load(segment_start + rows, inside, other=0)
    q = _load(query, rows, inside, q_stride, head, q_head, D, BLOCK_D)
    top, mass = tl.full((M,), float("-inf"), tl.float32), tl.zeros((M,), tl.float32)
    acc = tl.zeros((M, BLOCK_D), tl.float32)
    for n in range(tl.load(tile + 2), prompt_end, N):
        columns = n + tl.arange(0, N)
        k = _load(key, columns, columns < prompt_end, k_stride, head // share, k_head, D, BLOCK_D)
        v = _load(value, columns, columns < prompt_end, v_stride, head // share, v_head, D, BLOCK_D)
        top, mass, acc = _attend(q, k, v, (columns < prompt_end)[None, :], top, mass, acc, scale, PRECISION)
    for n in range(first, end, N):
        columns = n + tl.arange(0, N)
        k = _load(key, columns, columns < end, k_stride, head // share, k_head, D, BLOCK_D)
        v = _load(value, columns, columns < end, v_stride, head // share, v_head, D, BLOCK_D)
        allowed = (columns[None, :] >= begin[:, None]) & (columns[None, :] <= rows[:, None])
        top, mass, acc = _attend(q, k, v, allowed, top, mass, acc, scale, PRECISION)
    _store(out, acc / mass[:, None], rows, inside, head, heads, D, BLOCK_D)
    tl.store(log2_sum + rows.to(tl.int64) * heads + head, top + tl.log2(mass), inside)


@triton.jit
def _slope(q, k, v, grad, log2_sum, delta, allowed, scale, PRECISION: tl.constexpr):
    """(the attention weights, the loss by the scores), both [M, N]."""
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
    p = tl.where(allowed, tl.exp2(scores - log2_sum[:, None]), 0.0)
    return p, p * (tl.dot(grad, tl.trans(v), input_precision=PRECISION) - delta[:, None])


@triton.jit(do_not_specialize=["heads", "share", "scale"])
def query_gradient_kernel(query, key, value, out, grad, log2_sum, delta, by_query, tiles, segment_start, heads, share,
                          scale, q_stride, q_head, k_stride, k_head, v_stride, v_head, D: tl.constexpr,
                          BLOCK_D: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
                          PRECISION: tl.constexpr):  # fmt: skip
    """As the forward pass. Also writes delta, the sum of gradient · output of each row, for the other kernel."""
    tile, head = tiles + tl.program_id(0) // heads * 5, tl.program_id(0) % heads
    end, prompt_end, first = tl.load(tile + 1), tl.load(tile + 3), tl.load(tile + 4)
    rows = tl.load(tile) + tl.arange(0, M)
    inside = rows < end
    begin = tl.load(segment_start + rows, inside, other=0)
    q = _load(query, rows, inside, q_stride, head, q_head, D, BLOCK_D)
    g = _load(grad, rows, inside, heads * D, head, D, D, BLOCK_D)
    o = _load(out, rows, inside, heads * D, head, D, D, BLOCK_D)
    each = rows.to(tl.int64) * heads + head
    sums = tl.sum(g.to(tl.float32) * o.to(tl.float32), 1)
    tl.store(delta + each, sums, inside)
    log2 = tl.load(log2_sum + each, inside, other=0.0)
    acc = tl.zeros((M, BLOCK_D), tl.float32)
    for n in range(tl.load(tile + 2), prompt_end, N):
        columns = n + tl.arange(0, N)
        k = _load(key, columns, columns < prompt_end, k_stride, head // share, k_head, D, BLOCK_D)
        v = _load(value, columns, columns < prompt_end, v_stride, head // share, v_head, D, BLOCK_D)
        _, slope = _slope(q, k, v, g, log2, sums, (columns < prompt_end)[None, :], scale, PRECISION)
        acc += tl.dot(slope.to(k.dtype), k, input_precision=PRECISION)
    for n in range(first, end, N):
        columns = n + tl.arange(0, N)
        k = _load(key, columns, columns < end, k_stride, head // share, k_head, D, BLOCK_D)
        v = _load(value, columns, columns < end, v_stride, head // share, v_head, D, BLOCK_D)
        allowed = (columns[None, :] >= begin[:, None]) & (columns[None, :] <= rows[:, None])
        _, slope = _slope(q, k, v, g, log2, sums, allowed, scale, PRECISION)
        acc += tl.dot(slope.to(k.dtype), k, input_precision=PRECISION)
    _store(by_query, acc * (scale * 0.6931471805599453), rows, inside, head, heads, D, BLOCK_D)


@triton.jit(do_not_specialize=["heads", "share", "scale"])
def key_gradient_kernel(query, key, value, grad, log2_sum, delta, by_key, by_value, tiles, segment_start, heads, share,
                        scale, q_stride, q_head, k_stride, k_head, v_stride, v_head, D: tl.constexpr,
                        BLOCK_D: tl.constexpr, M: tl.constexpr, N: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """One program for each tile of N keys and key/value head: all queries that see it, of all heads that share it."""
    kv_heads = heads // share
    tile, kv = tiles + tl.program_id(0) // kv_heads * 4, tl.program_id(0) % kv_heads
    start, end, last, is_prompt = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2), tl.load(tile + 3)
    columns = start + tl.arange(0, N)
    k = _load(key, columns, columns < end, k_stride, kv, k_head, D, BLOCK_D)
    v = _load(value, columns, columns < end, v_stride, kv, v_head, D, BLOCK_D)
    by_k, by_v = tl.zeros((N, BLOCK_D), tl.float32), tl.zeros((N, BLOCK_D), tl.float32)
    for one in range(0, share):
        head = kv * share + one
        for m in range(start, last, M):
            rows = m + tl.arange(0, M)
            inside = rows < last
            begin = tl.load(segment_start + rows, inside, other=0)
            q = _load(query, rows, inside, q_stride, head, q_head, D, BLOCK_D)
            g = _load(grad, rows, inside, heads * D, head, D, D, BLOCK_D)
            each = rows.to(tl.int64) * heads + head
            log2, sums = tl.load(log2_sum + each, inside, other=0.0), tl.load(delta + each, inside, other=0.0)
            # what follows a prompt in its group sees all of it
            own = (is_prompt != 0) | (begin[:, None] <= columns[None, :])
            allowed = inside[:, None] & (columns < end)[None, :] & (columns[None, :] <= rows[:, None]) & own
            p, slope = _slope(q, k, v, g, log2, sums, allowed, scale, PRECISION)
            by_v += tl.dot(tl.trans(p).to(g.dtype), g, input_precision=PRECISION)
            by_k += tl.dot(tl.trans(slope).to(q.dtype), q, input_precision=PRECISION)
    _store(by_key, by_k * (scale * 0.6931471805599453), columns, columns < end, kv, kv_heads, D, BLOCK_D)
    _store(by_value, by_v, columns, columns < end, kv, kv_heads, D, BLOCK_D)


def _constants(query: Tensor, rows: str, columns: str) -> dict[str, Any]:
    """Of a kernel that holds `rows` tokens (a tile's) and walks over blocks of `columns`; sized to fit the registers.

    fp32 is multiplied at full precision, without tensor cores: it is there to be right, and spills at 128 channels.
    """
    dim = query.shape[2]
    full, forward = query.dtype == torch.float32, rows == "M"
    walk = (64 if forward else 32) // (2 if full else 1)
    sizes = {rows: BLOCK, columns: walk, "D": dim, "BLOCK_D": max(16, triton.next_power_of_2(dim))}
    return sizes | {"PRECISION": "ieee" if full else "tf32", "num_warps": 8, "num_stages": 2 if forward else 1}


def _scalars(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[float, ...]:
    """heads, share, scale to the base 2, and the strides of tokens and heads."""
    strides = [s for x in (query, key, value) for s in x.stride()[:2]]
    return query.shape[1], query.shape[1] // max(key.shape[1], 1), scale * LOG2_E, *strides


@torch.library.custom_op("univg_kernels::triton_shared_prefix", mutates_args=())
def triton_shared_prefix(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_tiles: Tensor,
    key_tiles: Tensor,
    segment_start: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """(output [T, heads, D], log2 of the mass of each softmax [T, heads] fp32)."""
    out, log2_sum = _outputs(query)
    args = (query, key, value, out, log2_sum, query_tiles, segment_start, *_scalars(query, key, value, scale))
    launch(forward_kernel, len(query_tiles) * query.shape[1], query, *args, **_constants(query, "M", "N"))
    return out, log2_sum


def _outputs(query: Tensor) -> tuple[Tensor, Tensor]:
    return query.new_empty(query.shape), query.new_empty(query.shape[:2], dtype=torch.float32)


@triton_shared_prefix.register_fake
def _(query: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    return _outputs(query)


@torch.library.custom_op("univg_kernels::triton_shared_prefix_backward", mutates_args=())
def triton_shared_prefix_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    log2_sum: Tensor,
    query_tiles: Tensor,
    key_tiles: Tensor,
    segment_start: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    by_query, by_key, by_value = (x.new_empty(x.shape) for x in (query, key, value))
    delta, scalars = torch.empty_like(log2_sum), _scalars(query, key, value, scale)
    args = (query, key, value, out, grad, log2_sum, delta, by_query, query_tiles, segment_start, *scalars)
    launch(query_gradient_kernel, len(query_tiles) * query.shape[1], query, *args, **_constants(query, "M", "N"))
    args = (query, key, value, grad, log2_sum, delta, by_key, by_value, key_tiles, segment_start, *scalars)
    launch(key_gradient_kernel, len(key_tiles) * key.shape[1], query, *args, **_constants(query, "N", "M"))
    return by_query, by_key, by_value


@triton_shared_prefix_backward.register_fake
def _(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    one, two, three = (x.new_empty(x.shape) for x in (query, key, value))
    return one, two, three


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*inputs[:3], *output, *inputs[3:6])
    ctx.scale = inputs[6]


@once_differentiable
def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    gradients = triton_shared_prefix_backward(grad.contiguous(), *ctx.saved_tensors, ctx.scale)
    return *gradients, None, None, None, None


triton_shared_prefix.register_autograd(_backward, setup_context=_setup_context)


def shared_prefix_attention(query: Tensor, key: Tensor, value: Tensor, layout: SharedPrefix, scale: float) -> Tensor:
    check_dtype("shared_prefix_attention", query)
    q, k, v = (x if x.stride(2) == 1 else x.contiguous() for x in (query, key, value))
    tiles = (layout.query_tiles.contiguous(), layout.key_tiles.contiguous(), layout.segment_start.contiguous())
    return triton_shared_prefix(q, k, v, *tiles, scale)[0]
