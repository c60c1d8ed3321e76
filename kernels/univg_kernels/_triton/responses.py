"""What a row takes from its response and its group: advantage, phi, weight.

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
def response_terms(response, cu_seqlens, rewards, accuracy, cu_groups, num_groups, advantages, phi, mask,
                   num_responses, num_responses_tensor, advantage_eps, difficulty_power,
                   SCALE: tl.constexpr, DIFFICULTY: tl.constexpr):  # fmt: skip
    """(advantage, phi, weight of each row that counts) of one response, fp32 scalars."""
    low, high = tl.load(cu_seqlens + response), tl.load(cu_seqlens + response + 1)
    if mask is None:
        length = (high - low).to(tl.float32)
    else:
        counted = tl.zeros([BLOCK], tl.int32)
        for start in range(low, high, BLOCK):
            i = start + tl.arange(0, BLOCK)
            counted += tl.load(mask + i, mask=i < high, other=0).to(tl.int32)
        length = tl.sum(counted, axis=0).to(tl.float32)
    if num_responses_tensor is not None:
        num_responses = tl.load(num_responses_tensor).to(tl.float32)
    weight = 1.0 / (tl.maximum(length, 1.0) * num_responses)
    difficulty_phi = tl.full([], 1.0, tl.float32)
    if rewards is None:
        advantage = tl.load(advantages + response)
        if phi is not None:
            difficulty_phi = tl.load(phi + response)
    else:
        group = find_segment(cu_groups, num_groups, response)
        begin, end = tl.load(cu_groups + group), tl.load(cu_groups + group + 1)
        first, mean, squares = centred_sums(rewards, begin, end)
        advantage = tl.load(rewards + response) - first - mean
        if SCALE == "group":
            advantage = advantage / (std_of(squares, end - begin) + advantage_eps)
        if accuracy is not None:
            difficulty_phi = difficulty(segment_mean(accuracy, begin, end), difficulty_power, DIFFICULTY)
    return advantage, difficulty_phi, weight
