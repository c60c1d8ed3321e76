// The head of one row of logits z, p = softmax(x), x = cap·tanh(z·scale/cap), or z·scale without a cap: its
// statistics, and its gradient
//   dL/dz_j = scale·(1 - (x_j/cap)²)·[a·(1[j = y] - p_j) - b·p_j·(log p_j + H)].
// Compiled for several instruction sets in row_head.cpp; the best one is chosen at run time.
#pragma once
#include <cstdint>

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

namespace univg {

template <class acc_t>
struct RowStats {
  acc_t logp, entropy;  // log p_y, H (nats)
  double lse;           // log sum_j exp(x_j): in fp32 it would cost large logits their last digits
};

template <class acc_t>
struct Squash {
  acc_t scale, cap, inner;  // cap: 0 for none; inner = scale/cap
};

template <class acc_t>
Squash<acc_t> make_squash(double scale, double cap) {
  return {static_cast<acc_t>(scale), static_cast<acc_t>(cap), static_cast<acc_t>(cap == 0 ? 0 : scale / cap)};
}

#define UNIVG_DECLARE_ROW_HEAD(scalar_t, acc_t)                                                               \
  RowStats<acc_t> row_stats(const scalar_t* z, int64_t vocab, int64_t id, Squash<acc_t> squash);              \
  /* `out` may be z itself. */                                                                                \
  void row_grad(scalar_t* out, const scalar_t* z, int64_t vocab, int64_t id, Squash<acc_t> squash, double lse, \
                acc_t entropy, acc_t a, acc_t b);

UNIVG_DECLARE_ROW_HEAD(double, double)
UNIVG_DECLARE_ROW_HEAD(float, float)
UNIVG_DECLARE_ROW_HEAD(torch::headeronly::BFloat16, float)
UNIVG_DECLARE_ROW_HEAD(torch::headeronly::Half, float)
#undef UNIVG_DECLARE_ROW_HEAD

}  // namespace univg
