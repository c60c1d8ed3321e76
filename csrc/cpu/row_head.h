// The head of one row of logits z, p = softmax(z / T): its statistics, and its gradient
//   dL/dz_j = (1/T)·[a·(1[j = y] - p_j) - b·p_j·(log p_j + H)].
// Compiled for several instruction sets in row_head.cpp; the best one is chosen at run time.
#pragma once
#include <cstdint>

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

namespace univg {

template <class acc_t>
struct RowStats {
  acc_t logp, entropy, lse;  // log p_y, H (nats), log sum_j exp(z_j / T)
};

#define UNIVG_DECLARE_ROW_HEAD(scalar_t, acc_t)                                                                    \
  RowStats<acc_t> row_stats(const scalar_t* z, int64_t vocab, int64_t id, acc_t inverse_temperature);              \
  /* `out` may be z itself. */                                                                                     \
  void row_grad(scalar_t* out, const scalar_t* z, int64_t vocab, int64_t id, acc_t inverse_temperature, acc_t lse, \
                acc_t entropy, acc_t a, acc_t b);

UNIVG_DECLARE_ROW_HEAD(double, double)
UNIVG_DECLARE_ROW_HEAD(float, float)
UNIVG_DECLARE_ROW_HEAD(torch::headeronly::BFloat16, float)
UNIVG_DECLARE_ROW_HEAD(torch::headeronly::Half, float)
#undef UNIVG_DECLARE_ROW_HEAD

}  // namespace univg
