"""The two sweeps over a row of logits: forward, the online softmax; backward, the gradient.

A tile is [LANES, VEC] neighbouring columns: VEC of them are one 16-byte load of one thread, so that reducing over VEC
stays inside the thread, and the running maximum costs one extra exponential per VEC columns instead of one per column.
p = softmax(x), x = cap·tanh(z·scale/cap), or z·scale where cap is None. All exponentials are base 2, of x·log2(e).
V: columns that are read and written; vocab: those that exist, the others (padding) have no probability and gradient 0;
None: all of V.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Below any exponent of a row that means something. Finite, so that lanes of -inf logits never make -inf - -inf.
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
def soft_cap(z, scale, cap):
    """(cap·tanh(z·scale/cap)·log2(e), derivative of the tanh by its argument)."""
    y = z * (scale / cap)
    e = tl.exp2(tl.abs(y) * (-2 * LOG2E))
    slope = 4 * e / ((1 + e) * (1 + e))
    far = (1 - e) / (1 + e)
    q = y * y  # near 0 that difference would cancel: the series
    near = y * (1 - q * (1 / 3 - q * (2 / 15 - q * (17 / 315 - q * (62 / 2835)))))
    tanh = tl.where(tl.abs(y) < 0.25, near, tl.where(y < 0, -far, far))
    return tanh * (cap * LOG2E), slope


@triton.jit
def capped_tile(tile, columns, V, vocab, scale, cap):
    """(tile in fp32, factor that makes its base-2 exponents, slope of the cap). Columns that do not exist: -inf."""
    x = tile.to(tl.float32)
    factor = scale * LOG2E
    slope = 1.0
    if cap is not None:
        x, slope = soft_cap(x, scale, cap)
        factor = 1.0
    if vocab is not None:
        x = tl.where(columns < vocab, x, -float("inf"))
    elif cap is not None:
        x = tl.where(columns < V, x, -float("inf"))
    return x, factor, slope


@triton.jit
def base2_exponent(tile, factor, top, log2_mass):
    """(tile·factor - top) - log2_mass: in this order no digit of a likely column is lost. NaN kept. [LANES, VEC]."""
    u = tl.fma(tile, tl.zeros_like(tile) + factor, tl.zeros_like(tile) - top) - log2_mass
    return tl.maximum(u, ABSENT, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def target_logit(row, target, V, vocab):
    """The logit of the target, fp32. Load it before anything overwrites the row; an id out of range gives NaN."""
    inside = (target >= 0) & (target < (V if vocab is None else vocab))
    return tl.where(inside, tl.load(row + target, mask=inside, other=0.0).to(tl.float32), float("nan"))


@triton.jit
def log_probability(z, scale, cap, top, log2_mass):
    """base2_exponent of the target's logit, in nats."""
    if cap is None:
        above = tl.fma(z, scale * LOG2E, -top)
    else:
        x, _ = soft_cap(z, scale, cap)
        above = x - top
    return (above - log2_mass) * LN2


@triton.jit
def sweep_forward(row, first, V, vocab, scale, cap, LANES: tl.constexpr, VEC: tl.constexpr):
    """(log2-sum-exp2 in two parts whose sum it is: maximum and log2 of the rest, entropy in nats), fp32 scalars.

    `first` is the tile at column 0, loaded by the caller as early as it likes. Each pass loads the next tile before it
    works on this one: two tiles are in flight.
    """
    peak = tl.full([LANES], FLOOR, tl.float32)
    mass = tl.zeros([LANES], tl.float32)  # sum of e = 2^u, u = exponent - peak
    moment = tl.zeros([LANES], tl.float32)  # sum of e·u
    tile = first
    for start in range(0, V, LANES * VEC):
        x, factor, _ = capped_tile(tile, tile_columns(start, LANES, VEC), V, vocab, scale, cap)
        tile = load_tile(row, start + LANES * VEC, V, LANES, VEC)
        new_peak = tl.maximum(peak, tl.max(x, axis=1) * factor)
        shrink = tl.exp2(peak - new_peak)
        u = base2_exponent(x, factor, new_peak[:, None], 0.0)
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
def sweep_backward(row, out, target, V, vocab, scale, cap, top, log2_mass, a, b, entropy,
                   HAS_B: tl.constexpr, LANES: tl.constexpr, VEC: tl.constexpr):  # fmt: skip
    """out = (a·(1[target] - p) - b·p·(log p + H))·dx/dz, a = dL/dlogp, b = dL/dH. `out` may be `row`.

    Runs from the last tile to the first: the end of the row was read last and is the likeliest to be in the L2 cache.
    """
    at_target = a * scale
    constant = -at_target
    slope = 0.0
    if HAS_B:
        constant = -(a + b * entropy) * scale
        slope = -b * LN2 * scale
    STEP: tl.constexpr = LANES * VEC
    last = ((V - 1) // STEP) * STEP
    tile = load_tile(row, last, V, LANES, VEC)
    for back in range(0, V, STEP):
        start = last - back
        columns = tile_columns(start, LANES, VEC)
        x, factor, cap_slope = capped_tile(tile, columns, V, vocab, scale, cap)
        tile = load_tile(row, start - STEP, V, LANES, VEC)
        u = base2_exponent(x, factor, top, log2_mass)
        gradient = tl.exp2(u) * (constant + slope * u) if HAS_B else tl.exp2(u) * constant
        gradient += tl.where(columns == target, at_target, 0.0)
        if cap is not None:
            gradient *= cap_slope
        if vocab is not None:
            gradient = tl.where(columns < vocab, gradient, 0.0)
        tl.store(out + columns, gradient.to(out.dtype.element_ty), mask=columns < V)


@triton.jit
def fill_zeros(out, V, LANES: tl.constexpr, VEC: tl.constexpr):
    for start in range(0, V, LANES * VEC):
        columns = tile_columns(start, LANES, VEC)
        tl.store(out + columns, tl.zeros([LANES, VEC], tl.float32).to(out.dtype.element_ty), mask=columns < V)
