"""The two sweeps over a row of logits: forward, the online softmax; backward, the gradient.

A tile is [LANES, VEC] neighbouring columns: VEC of them are one 16-byte load of one thread, so that reducing over VEC
stays inside the thread, and the running maximum costs one extra exponential per VEC columns instead of one per column.
All exponentials are base 2 of z·scale with scale = log2(e)/T. V = row length.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Below any z·scale of a row that means something. Finite, so that lanes of -inf logits never make -inf - -inf.
FLOOR: tl.constexpr = tl.constexpr(-1e30)
# 2^-256 is 0 in fp32: the exponent of an absent column, kept finite so that 0·log 0 is 0 and not NaN.
ABSENT: tl.constexpr = tl.constexpr(-256.0)
LN2: tl.constexpr = tl.constexpr(0.6931471805599453)
LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def tile_columns(start, LANES: tl.constexpr, VEC: tl.constexpr):
    return start + tl.arange(0, LANES)[:, None] * VEC + tl.arange(0, VEC)[None, :]  # [LANES, VEC]


@triton.jit
def load_tile(row, start, V, LANES: tl.constexpr, VEC: tl.constexpr):
    columns = tile_columns(start, LANES, VEC)
    return tl.load(row + columns, mask=(columns >= 0) & (columns < V), other=-float("inf"))


@triton.jit
def base2_exponent(tile, scale, shift):
    """z·scale - shift, one rounding, NaN kept. [LANES, VEC] fp32."""
    u = tl.fma(tile, tl.zeros_like(tile) + scale, tl.zeros_like(tile) - shift)
    return tl.maximum(u, ABSENT, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def sweep_forward(row, first, V, scale, LANES: tl.constexpr, VEC: tl.constexpr):
    """(log2-sum-exp2 in two parts whose sum it is: maximum and log2 of the rest, entropy in nats), fp32 scalars.

    `first` is the tile at column 0, loaded by the caller as early as it likes. Each pass loads the next tile before it
    works on this one: two tiles are in flight.
    """
    peak = tl.full([LANES], FLOOR, tl.float32)
    mass = tl.zeros([LANES], tl.float32)  # sum of e = 2^u, u = z·scale - peak
    moment = tl.zeros([LANES], tl.float32)  # sum of e·u
    tile = first
    for start in range(0, V, LANES * VEC):
        x = tile.to(tl.float32)
        tile = load_tile(row, start + LANES * VEC, V, LANES, VEC)
        new_peak = tl.maximum(peak, tl.max(x, axis=1) * scale)
        shrink = tl.exp2(peak - new_peak)
        u = base2_exponent(x, scale, new_peak[:, None])
        e = tl.exp2(u)
        moment = shrink * (moment + mass * (peak - new_peak)) + tl.sum(e * u, axis=1)
        mass = mass * shrink + tl.sum(e, axis=1)
        peak = new_peak
    top = tl.max(peak, axis=0)
    share = tl.exp2(peak - top)
    moment = tl.sum(share * (moment + mass * (peak - top)), axis=0)
    mass = tl.sum(share * mass, axis=0)
    log2_mass = tl.log2(mass)
    return top, log2_mass, (log2_mass - moment / mass) * LN2


@triton.jit
def sweep_backward(row, out, target, V, scale, log2_sum, a, b, entropy, temperature, HAS_B: tl.constexpr,
                   LANES: tl.constexpr, VEC: tl.constexpr):  # fmt: skip
    """out = (a·(1[target] - p) - b·p·(log p + H)) / T, a = dL/dlogp, b = dL/dH. `out` may be `row`.

    Runs from the last tile to the first: the end of the row was read last and is the likeliest to be in the L2 cache.
    """
    at_target = a / temperature
    constant = -at_target
    slope = 0.0
    if HAS_B:
        constant = -(a + b * entropy) / temperature
        slope = -b * LN2 / temperature
    STEP: tl.constexpr = LANES * VEC
    last = ((V - 1) // STEP) * STEP
    tile = load_tile(row, last, V, LANES, VEC)
    for back in range(0, V, STEP):
        start = last - back
        x = tile.to(tl.float32)
        tile = load_tile(row, start - STEP, V, LANES, VEC)
        columns = tile_columns(start, LANES, VEC)
        u = base2_exponent(x, scale, log2_sum)
        gradient = tl.exp2(u) * (constant + slope * u) if HAS_B else tl.exp2(u) * constant
        gradient += tl.where(columns == target, at_target, 0.0)
        tl.store(out + columns, gradient.to(out.dtype.element_ty), mask=columns < V)


@triton.jit
def fill_zeros(out, V, LANES: tl.constexpr, VEC: tl.constexpr):
    for start in range(0, V, LANES * VEC):
        columns = tile_columns(start, LANES, VEC)
        tl.store(out + columns, tl.zeros([LANES, VEC], tl.float32).to(out.dtype.element_ty), mask=columns < V)
