"""What a row takes from its response and its group: advantage, phi, weights.

One device function each, used by the kernel of `group_advantage` and inside the policy losses, where every program
makes the factors of its own response (a few loads that hit the L2 cache) and no other launch is needed.
"""

from __future__ import annotations

import triton
import triton.language as tl

BLOCK: tl.constexpr = tl.constexpr(1024)  # offsets, or rows of a response, looked at in one step
MEMBERS: tl.constexpr = tl.constexpr(128)  # responses of a group, likewise


@triton.jit
def find_segment(offsets, num_segments, item):
    """The segment that holds `item`: how many segments end at or before it. Empty segments are passed over."""
    found = tl.full([], 0, tl.int32)
    for start in range(0, num_segments, BLOCK):
        i = start + tl.arange(0, BLOCK)
        end = tl.load(offsets + 1 + i, mask=i < num_segments, other=0)
        found += tl.sum(((end <= item) & (i < num_segments)).to(tl.int32), axis=0)
    return found


@triton.jit
def centred_sums(values, low, high):
    """(first value, mean of value - first, sum of squared deviations) of values[low:high].

    Taken from the first member: equal values then give exactly 0, whatever they round to.
    """
    dtype = values.dtype.element_ty
    size = tl.maximum(high - low, 1).to(dtype)
    first = tl.load(values + low, mask=high > low, other=0.0)
    total = tl.zeros([MEMBERS], dtype)
    for start in range(low, high, MEMBERS):
        i = start + tl.arange(0, MEMBERS)
        total += tl.where(i < high, tl.load(values + i, mask=i < high, other=0.0) - first, 0.0)
    mean = tl.sum(total, axis=0) / size
    squares = tl.zeros([MEMBERS], dtype)
    for start in range(low, high, MEMBERS):
        i = start + tl.arange(0, MEMBERS)
        deviation = tl.load(values + i, mask=i < high, other=0.0) - first - mean
        squares += tl.where(i < high, deviation * deviation, 0.0)
    return first, mean, tl.sum(squares, axis=0)


@triton.jit
def segment_mean(values, low, high):
    dtype = values.dtype.element_ty
    total = tl.zeros([MEMBERS], dtype)
    for start in range(low, high, MEMBERS):
        i = start + tl.arange(0, MEMBERS)
        total += tl.load(values + i, mask=i < high, other=0.0)
    return tl.sum(total, axis=0) / tl.maximum(high - low, 1).to(dtype)


@triton.jit
def difficulty(miou, power, KIND: tl.constexpr):
    """phi(mIoU) before normalisation."""
    tl.static_assert(KIND == "exp" or KIND == "power" or KIND == "log" or KIND == "none", "unknown difficulty")
    phi = tl.zeros_like(miou) + 1.0
    if KIND == "exp":
        phi = tl.exp(1.0 - miou)
    if KIND == "power":
        phi = tl.exp2(power * tl.log2(1.05 - miou))
    if KIND == "log":
        phi = -tl.log(0.02 + miou)
    return phi


@triton.jit
def std_of(squares, count):
    """ddof 1; 0 where there are fewer than two."""
    return tl.sqrt(squares / tl.maximum(count - 1, 1).to(squares.dtype))


@triton.jit
def centre(values, first, offset, size, CENTER_SINGLETONS: tl.constexpr):
    """values - mean of the group, mean = first + offset."""
    centred = values - first - offset
    if not CENTER_SINGLETONS:
        centred = tl.where(size == 1, values, centred)
    return centred


@triton.jit
def group_divisor(squares, size, advantage_eps, CENTER_SINGLETONS: tl.constexpr):
    std = std_of(squares, size)
    if not CENTER_SINGLETONS:
        std = tl.where(size == 1, 1.0, std)
    return std + advantage_eps


@triton.jit
def scalar(pointer, number):
    """What lies on the device, or else what the host has said."""
    return number if pointer is None else tl.load(pointer).to(tl.float32)


@triton.jit
def advantage_and_phi(response, rows, num_groups, numbers, BRANCHES: tl.constexpr):
    """Of one response, fp32 scalars. With token_advantages the first is 0."""
    DIFFICULTY: tl.constexpr = BRANCHES.difficulty
    CENTER: tl.constexpr = BRANCHES.center_singletons
    advantage = tl.full([], 0.0, tl.float32)
    phi = tl.full([], 1.0, tl.float32)
    if rows.rewards is None:
        if rows.advantages is not None:
            advantage = tl.load(rows.advantages + response)
        if rows.phi is not None:
            phi = tl.load(rows.phi + response)
    else:
        group = find_segment(rows.cu_groups, num_groups, response)
        begin, end = tl.load(rows.cu_groups + group), tl.load(rows.cu_groups + group + 1)
        first, offset, squares = centred_sums(rows.rewards, begin, end)
        reward = tl.load(rows.rewards + response)
        advantage = centre(reward, first, offset, end - begin, CENTER)
        if BRANCHES.scale_rewards == "group":
            advantage /= group_divisor(squares, end - begin, numbers.advantage_eps, CENTER)
        if rows.accuracy is not None:
            accuracy = segment_mean(rows.accuracy, begin, end)
            phi = difficulty(accuracy, numbers.difficulty_power, DIFFICULTY)
    return advantage, phi


@triton.jit
def count_rows(begin, end, mask):
    """Rows of [begin, end) that count, fp32."""
    if mask is None:
        return (end - begin).to(tl.float32)
    else:
        counted = tl.zeros([BLOCK], tl.int32)
        for start in range(begin, end, BLOCK):
            i = start + tl.arange(0, BLOCK)
            counted += tl.load(mask + i, mask=i < end, other=0).to(tl.int32)
        return tl.sum(counted, axis=0).to(tl.float32)


@triton.jit
def row_weights(length, rows, numbers, BRANCHES: tl.constexpr):
    """(weight, entropy_weight) of each row that counts in a response that has `length` of them."""
    weight = numbers.weight_scale / scalar(rows.denominator, numbers.denominator)
    if BRANCHES.token_mean:
        weight /= tl.maximum(length, 1.0)
    entropy_weight = weight * numbers.entropy_coef
    if BRANCHES.bonus == "token-mean":
        entropy_weight = numbers.entropy_coef / scalar(rows.entropy_denominator, numbers.entropy_denominator)
    return weight, entropy_weight
