// One row of logits, held on chip by one cluster, from its only read to its gradient.
#pragma once
#include "held_slice.cuh"

namespace univg::gpu {

// Per-row results that are added up later, in this order; the metrics are METRICS of metrics.py.
enum Record {
  record_loss,
  record_counts,
  record_kl,
  record_entropy,
  record_low,
  record_high,
  record_ratio,
  record_importance,
  record_dropped,
  record_difference,
  record_sampling_difference,
  num_records
};

template <class T>
struct GrpoRows {
  const T* logits;
  T* gradient;  // may be the logits, or null
  int64_t rows, stride, gradient_stride;
  int columns;
  const int64_t* ids;
  float scale, knee;
  RowInputs<float> inputs;
  Program<float> program;
  float* logp;     // [rows]
  bool* active;    // [rows]
  float* records;  // [num_records, rows]
};

constexpr int kInputs = 9;  // of RowInputs

struct alignas(16) Shared {
  Exchange exchange;
  Gradient gradient;
  float inputs[kInputs];
  float edges[kMostEdges<bf16>];
};
static_assert(sizeof(Shared) % kVectorBytes == 0 && sizeof(Shared) <= 1024);  // the slice follows; cuda_impl.py

// Loads first, then stores: one latency for all of them.
UNIVG_DEVICE void fetch_inputs(const RowInputs<float>& in, int64_t t, float* out) {
  float v[kInputs] = {load_element(in.advantage + t), load_element(in.phi + t), load_element(in.weight + t)};
  if (in.entropy_weight) v[3] = load_element(in.entropy_weight + t);
  if (in.entropy_threshold) v[4] = load_element(in.entropy_threshold);
  if (in.old_logp) v[5] = load_element(in.old_logp + t);
  if (in.ref_logp) v[6] = load_element(in.ref_logp + t);
  if (in.sampling_logp) v[7] = load_element(in.sampling_logp + t);
  if (in.importance) v[8] = load_element(in.importance + t);
#pragma unroll
  for (int i = 0; i < kInputs; ++i) out[i] = v[i];
}

UNIVG_DEVICE RowInputs<float> fetched(const RowInputs<float>& in, const float* x) {
  return {x,
          x + 1,
          x + 2,
          in.entropy_weight ? x + 3 : nullptr,
          in.entropy_threshold ? x + 4 : nullptr,
          in.old_logp ? x + 5 : nullptr,
          in.ref_logp ? x + 6 : nullptr,
          in.sampling_logp ? x + 7 : nullptr,
          in.importance ? x + 8 : nullptr};
}

template <class T>
UNIVG_DEVICE void store_records(const GrpoRows<T>& g, int64_t t, const float (&values)[num_records]) {
  for (int i = 0; i < num_records; ++i) store_element(g.records + i * g.rows + t, values[i]);
}

// The row program; the first thread of the cluster writes what it says.
template <class T, bool kCap>
UNIVG_DEVICE Gradient score(const GrpoRows<T>& g, const Bend& bend, const RowSoftmax& row, const float* inputs,
                            int64_t t, bool writes) {
  const float log2_mass = log2f(row.mass.mass), w = bend.bent<kCap>(row.target);
  // In this order no digit of a likely token is lost.
  const float logp = (fmaf(w, bend.scale2, -row.mass.peak) - log2_mass) * kLn2;
  const float entropy = (log2_mass - row.mass.moment / row.mass.mass) * kLn2;
  const Row<float> r = read_row(fetched(g.inputs, inputs), g.program, 0, logp, entropy);
  const Score<float> s = score_row(r, Response<float>{}, g.program);
  const float a = s.own_slope(), b = s.b;
  const bool active = a != 0 || b != 0;
  if (writes) {
    store_element(g.logp + t, logp);
    store_element(g.active + t, active);
    const float values[num_records] = {s.loss,
                                       1,
                                       s.kl,
                                       entropy,
                                       float(s.low),
                                       float(s.high),
                                       s.ratio,
                                       s.importance,
                                       float(s.dropped),
                                       fabsf(r.difference),
                                       fabsf(r.sampling_difference)};
    store_records(g, t, values);
  }
  // dL/dz_j = scale·bend'·(a·(1[j = y] - p_j) - b·p_j·(log p_j + H)), p_j = 2^u_j/mass, log p_j = (u_j - log2 mass)·ln2
  const float over_mass = g.scale / row.mass.mass, bounded = fmaxf(logp, kAbsent * kLn2);
  const float from_entropy = b == 0 ? 0 : b * expf(logp) * (bounded + entropy);
  return {row.mass.peak, -over_mass * (b == 0 ? a : a + b * (entropy - log2_mass * kLn2)), -over_mass * b * kLn2,
          g.scale * bend.slope<kCap>(w) * (-a * expm1f(logp) - from_entropy), active};
}

// All threads of the cluster that has row t.
template <class T, bool kCap>
UNIVG_DEVICE void grpo_row(const GrpoRows<T>& g) {
  auto& shared = *reinterpret_cast<Shared*>(shared_memory());
  const int rank = cluster_rank(), ranks = cluster_size();
  const int64_t t = cluster_index();
  const bool writes = rank == 0 && thread() == 0;
  T* out = g.gradient ? g.gradient + t * g.gradient_stride : nullptr;
  if (load_element(g.inputs.weight + t) == 0) {  // does not count, is not read
    if (writes) {
      store_element(g.logp + t, 0.0f);
      store_element(g.active + t, false);
      store_records(g, t, {});
    }
    if (out) fill_zeros(out, g.columns, rank, ranks);
    return;
  }
  cluster_begin();
  const int64_t id = load_element(g.ids + t);
  const bool exists = id >= 0 && id < g.columns;
  if (thread() == 0) fetch_inputs(g.inputs, t, shared.inputs);

  const T* row = g.logits + t * g.stride;
  const HeldSlice<T, kCap> held(row, g.columns, rank, ranks, Bend{g.scale * kLog2e, g.knee},
                                reinterpret_cast<Vector*>(&shared + 1), shared.edges);
  const Mass mass = held.sweep_forward();
  Place target;
  if (exists) target = Place::of(static_cast<int>(id), held.parts, held.slice, rank, threads());
  RowSoftmax sum =
      cluster_sum(mass, shared.exchange, rank, ranks, [&] { return target.thread >= 0 ? held.logit(target) : 0.0f; });
  if (thread() < kWarp) {
    if (!exists) sum.target = NAN;  // seen in the loss
    const Gradient gradient = score<T, kCap>(g, held.bend, sum, shared.inputs, t, writes);
    if (thread() == 0) shared.gradient = gradient;
  }
  if (!out) return;
  sync_block();
  const Gradient gradient = shared.gradient;
  if (!gradient.active) return fill_zeros(out, g.columns, rank, ranks);
  if (gradient.slope == 0) held.template sweep_backward<false>(out, gradient);
  else held.template sweep_backward<true>(out, gradient);
  // By the thread that has stored the target's neighbours: its stores keep their order.
  if (target.thread == thread()) store_element(out + id, round_to(gradient.of_target, T{}));
}

}  // namespace univg::gpu
