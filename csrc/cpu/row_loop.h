// The loop over rows that every logits head shares: statistics, then the row's program, then the gradient while the
// row is still in the cache.
#pragma once
#include <cstring>

#include "../common.h"
#include "../row_program.h"
#include "row_head.h"

namespace univg {

struct LogitsView {
  int64_t rows, vocab, stride;
};

// Logits [N, V] on the CPU, columns contiguous, rows at any distance that keeps them apart.
inline LogitsView view_logits(const Tensor& logits, const char* op) {
  UNIVG_CHECK(logits.is_cpu() && logits.dim() == 2, op, ": logits: expected a CPU tensor [N, V], got ", logits.dim(),
              " dimensions");
  const int64_t n = logits.size(0), v = logits.size(1);
  UNIVG_CHECK(v > 0 && (v == 1 || logits.stride(1) == 1) && (n <= 1 || logits.stride(0) >= v), op,
              ": logits: expected rows of contiguous columns that do not overlap; call .contiguous() first");
  return {n, v, n <= 1 ? v : logits.stride(0)};
}

inline void check_id(int64_t id, int64_t vocab, const char* op) {
  UNIVG_CHECK(id >= 0 && id < vocab, op, ": token_ids: expected values in [0, ", vocab, "), got ", id);
}

// program(t, stats) -> Coefficients of row t; skip(t) -> true for a row that is not read and has no gradient.
// out: where gradients go, or null. Rows without a gradient become zeros.
template <class scalar_t, class Skip, class Program>
void for_each_row(const Tensor& logits, const Tensor* out, const int64_t* ids, double temperature, const char* op,
                  const Skip& skip, const Program& program) {
  using acc_t = acc_type<scalar_t>;
  const LogitsView in = view_logits(logits, op);
  const int64_t out_stride = out ? view_logits(*out, op).stride : 0;
  const auto* z = static_cast<const scalar_t*>(logits.data_ptr());
  auto* g = out ? static_cast<scalar_t*>(out->data_ptr()) : nullptr;
  const acc_t inverse_t = static_cast<acc_t>(1.0 / temperature);
  for (int64_t t = 0; t < in.rows; ++t) check_id(ids[t], in.vocab, op);
  torch::stable::parallel_for(0, in.rows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const scalar_t* row = z + t * in.stride;
      Coefficients<acc_t> c;
      RowStats<acc_t> s{0, 0, 0};
      if (!skip(t)) {
        s = row_stats(row, in.vocab, ids[t], inverse_t);
        c = program(t, s);
      }
      if (!g) continue;
      if (c.active()) row_grad(g + t * out_stride, row, in.vocab, ids[t], inverse_t, s.lse, s.entropy, c.a, c.b);
      else std::memset(static_cast<void*>(g + t * out_stride), 0, in.vocab * sizeof(scalar_t));
    }
  });
}

}  // namespace univg
