// The online softmax over a row that the CTAs of a cluster share, in base 2.
#pragma once
#include "vectors.cuh"

namespace univg::gpu {

constexpr float kLn2 = 0.6931471805599453f, kLog2e = 1.4426950408889634f;
// Below any exponent that means something. Finite, so that -inf logits never make -inf - -inf.
constexpr float kFloor = -1e30f;
// 2^-256 is 0 in fp32: the exponent of an absent column, kept finite so that 0·log 0 is 0 and not NaN.
constexpr float kAbsent = -256.0f;
constexpr int kWarp = 32, kMostWarps = 16;

// sum of 2^(x - peak), and of 2^(x - peak)·(x - peak)
struct Mass {
  float peak = kFloor, mass = 0, moment = 0;
};

UNIVG_DEVICE Mass rebased(const Mass& m, float peak) {
  const float rise = m.peak - peak, share = exp2_fast(rise);
  return {peak, m.mass * share, share * (m.moment + m.mass * rise)};
}

// All lanes get the sum of the first kLanes lanes of each group of as many.
template <int kLanes>
UNIVG_DEVICE float lane_sum(float x) {
#pragma unroll
  for (int apart = kLanes / 2; apart > 0; apart /= 2) x += shuffle_xor(x, apart);
  return x;
}
template <int kLanes>
UNIVG_DEVICE Mass lane_sum(const Mass& m) {
  float peak = m.peak;
#pragma unroll
  for (int apart = kLanes / 2; apart > 0; apart /= 2) peak = fmaxf(peak, shuffle_xor(peak, apart));
  const Mass own = rebased(m, peak);
  return {peak, lane_sum<kLanes>(own.mass), lane_sum<kLanes>(own.moment)};
}

// How logits become exponents: x = bend(z)·scale2 - peak, with bend(z) = knee·tanh(z/knee) under a softcap.
struct Bend {
  float scale2;  // scale·log2(e)
  float knee;    // cap/scale, 0 for none

  template <bool kCap>
  UNIVG_DEVICE float bent(float z) const {
    if constexpr (kCap) return knee * tanhf(z / knee);
    else return z;
  }
  template <bool kCap>
  UNIVG_DEVICE float slope(float w) const {  // d bend/dz, from w = bend(z)
    if constexpr (kCap) return 1.0f - (w / knee) * (w / knee);
    else return 1.0f;
  }
};

// NaN is kept.
UNIVG_DEVICE float exponent(float w, float scale2, float peak) { return max_nan(fmaf(w, scale2, -peak), kAbsent); }

// One more vector of columns, bent. The peak ignores NaN, the sums keep it.
template <int kCount>
UNIVG_DEVICE void add_columns(Mass& m, const float (&w)[kCount], float scale2) {
  float highest = w[0];
#pragma unroll
  for (int j = 1; j < kCount; ++j) highest = fmaxf(highest, w[j]);
  m = rebased(m, fmaxf(m.peak, highest * scale2));
#pragma unroll
  for (int j = 0; j < kCount; ++j) {
    const float u = exponent(w[j], scale2, m.peak), e = exp2_fast(u);
    m.mass += e;
    m.moment = fmaf(e, u, m.moment);
  }
}

// What the CTAs of a cluster tell each other.
struct Exchange {
  float4 warps[kMostWarps];  // peak, mass, moment of each warp of this CTA
  float4 ranks[kMostRanks];  // and of each CTA, with the target's logit or 0
};

struct RowSoftmax {
  Mass mass;
  float target;  // logit of the target column
};

// To be called by all threads of the cluster. `target()` gives this CTA's share of the target's logit: 0 unless it has
// the column; what the CTA has stored in shared memory is seen there. The result is for warp 0.
template <class Target>
UNIVG_DEVICE RowSoftmax cluster_sum(const Mass& of_thread, Exchange& x, int rank, int ranks, const Target& target) {
  const int warp = thread() / kWarp, lane = thread() % kWarp;
  const Mass of_warp = lane_sum<kWarp>(of_thread);
  if (lane == 0) x.warps[warp] = {of_warp.peak, of_warp.mass, of_warp.moment, 0.0f};
  sync_block();
  cluster_wait();  // for the other CTAs to have begun: their shared memory exists
  if (warp == 0) {
    Mass m;
    if (lane < threads() / kWarp) m = {x.warps[lane].x, x.warps[lane].y, x.warps[lane].z};
    m = lane_sum<kMostWarps>(m);
    const float4 own = {m.peak, m.mass, m.moment, target()};
    if (lane < ranks) store_cluster(&x.ranks[rank], lane, own);
  }
  cluster_arrive();
  cluster_wait();
  RowSoftmax row{};
  if (warp == 0) {
    float4 of_rank = {kFloor, 0.0f, 0.0f, 0.0f};
    if (lane % kMostRanks < ranks) of_rank = x.ranks[lane % kMostRanks];
    row = {lane_sum<kMostRanks>(Mass{of_rank.x, of_rank.y, of_rank.z}), lane_sum<kMostRanks>(of_rank.w)};
  }
  return row;
}

}  // namespace univg::gpu
