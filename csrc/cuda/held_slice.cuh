// A CTA's slice of a row: brought on chip by the only read there is, summed, and turned into its gradient.
#pragma once
#include "cluster_softmax.cuh"

namespace univg::gpu {

// gradient = e·(constant + slope·u)·bend', u the exponent above the peak, e = 2^u
struct Gradient {
  float peak, constant, slope, of_target;
  bool active;
};

// Copies that a thread has under way before it works on the first.
constexpr int kAhead = 8;

template <class T>
UNIVG_DEVICE void fill_zeros(T* out, int columns, int rank, int ranks) {
  const RowParts<T> parts(out, columns);
  const Slice slice(parts.vectors, rank, ranks);
  T* vectors = out + parts.column_of_vector(slice.begin);
  for (int v = thread(); v < slice.size; v += threads()) store_vector(vectors + v * kColumns<T>, Vector{0, 0, 0, 0});
  if (rank == 0 && thread() < parts.edges()) store_element(out + parts.column_of_edge(thread()), T{});
}

// What a CTA keeps of its row: vectors in shared memory, the edges beside them. A thread reads back only what it has
// brought itself, so there is no barrier between.
template <class T, bool kCap>
struct HeldSlice {
  const T* row;
  RowParts<T> parts;
  Slice slice;
  Vector* held;
  float* edges;
  int edge;  // of this thread, or -1
  Bend bend;

  UNIVG_DEVICE HeldSlice(const T* row_, int columns, int rank, int ranks, Bend bend_, Vector* held_, float* edges_)
      : row(row_),
        parts(row_, columns),
        slice(parts.vectors, rank, ranks),
        held(held_),
        edges(edges_),
        edge(rank == 0 && thread() < parts.edges() ? thread() : -1),
        bend(bend_) {}

  UNIVG_DEVICE float logit(const Place& p) const {
    return p.edge >= 0 ? edges[p.edge] : to_float(reinterpret_cast<const T*>(held + p.vector)[p.offset]);
  }

  template <int kCount>
  UNIVG_DEVICE void bend_all(float (&w)[kCount]) const {
#pragma unroll
    for (int j = 0; j < kCount; ++j) w[j] = bend.template bent<kCap>(w[j]);
  }

  // The only read of the row, and the online softmax while the next copies are under way.
  UNIVG_DEVICE Mass sweep_forward() const {
    const T* source = row + parts.column_of_vector(slice.begin);
    int next = thread();
#pragma unroll 1
    for (int i = 0; i < kAhead; ++i, next += threads()) {
      if (next < slice.size) copy_async(held + next, source + next * kColumns<T>);
      commit_copies();
    }
    Mass m;
    if (edge >= 0) {
      const float z = to_float(load_element(row + parts.column_of_edge(edge)));
      edges[edge] = z;
      const float w[1] = {bend.template bent<kCap>(z)};
      add_columns(m, w, bend.scale2);
    }
#pragma unroll 1
    for (int v = thread(); v < slice.size; v += threads(), next += threads()) {
      if (next < slice.size) copy_async(held + next, source + next * kColumns<T>);
      commit_copies();
      wait_copies<kAhead>();
      float w[kColumns<T>];
      unpack(held[v], w, T{});
      bend_all(w);
      add_columns(m, w, bend.scale2);
    }
    return m;
  }

  template <bool kEntropy, int kCount>
  UNIVG_DEVICE void differentiate(float (&w)[kCount], const Gradient& g) const {
    bend_all(w);
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      // Without entropy, the exponent of -inf may stay -inf: it only goes through 2^u.
      const float u = kEntropy ? exponent(w[j], bend.scale2, g.peak) : fmaf(w[j], bend.scale2, -g.peak);
      const float factor = kEntropy ? fmaf(g.slope, u, g.constant) : g.constant;
      w[j] = exp2_fast(u) * factor * bend.template slope<kCap>(w[j]);
    }
  }

  template <bool kEntropy>
  UNIVG_DEVICE void sweep_backward(T* out, const Gradient& g) const {
    const bool aligned = RowParts<T>(out, parts.columns).head == parts.head;  // as the logits are
    T* target = out + parts.column_of_vector(slice.begin);
#pragma unroll 1
    for (int v = thread(); v < slice.size; v += threads()) {
      float w[kColumns<T>];
      unpack(held[v], w, T{});
      differentiate<kEntropy>(w, g);
      if (aligned) {
        store_vector(target + v * kColumns<T>, pack(w, T{}));
      } else {
#pragma unroll
        for (int j = 0; j < kColumns<T>; ++j) store_element(target + v * kColumns<T> + j, round_to(w[j], T{}));
      }
    }
    if (edge >= 0) {
      float w[1] = {edges[edge]};
      differentiate<kEntropy>(w, g);
      store_element(out + parts.column_of_edge(edge), round_to(w[0], T{}));
    }
  }
};

}  // namespace univg::gpu
