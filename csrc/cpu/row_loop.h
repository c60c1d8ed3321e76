// The loop over rows that every logits head shares: statistics, then the row's program, then the gradient while the
// row is still in the cache.
#pragma once
#include <algorithm>
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

// The pointer to N ids that all lie in the vocabulary.
inline const int64_t* checked_ids(const Tensor& token_ids, const LogitsView& logits, const char* op) {
  const int64_t* ids = data<int64_t>(token_ids, logits.rows, "token_ids");
  for (int64_t t = 0; t < logits.rows; ++t)
    UNIVG_CHECK(ids[t] >= 0 && ids[t] < logits.vocab, op, ": token_ids: expected values in [0, ", logits.vocab,
                "), got ", ids[t]);
  return ids;
}

// How many rows one thread takes at a time: fewer columns, more rows.
inline int64_t rows_per_block(int64_t vocab) { return vocab < 16384 ? 16384 / vocab : 1; }

// The gradient of one row; zeros, without a look at z, where its coefficients are 0.
template <class scalar_t, class acc_t>
void write_grad(scalar_t* out, const scalar_t* z, int64_t vocab, int64_t id, Squash<acc_t> squash,
                const RowStats<acc_t>& s, const Coefficients<acc_t>& c) {
  if (c.active()) row_grad(out, z, vocab, id, squash, s.lse, s.entropy, c.a, c.b);
  else std::memset(static_cast<void*>(out), 0, vocab * sizeof(scalar_t));
}

// program(t, stats) -> Coefficients of row t; skip(t) -> true for a row that is not read and has no gradient.
// out: where gradients go, or null. Rows without a gradient become zeros. A block of rows_per_block rows is one thread's,
// in order.
template <class scalar_t, class Skip, class RowFunction>
void for_each_row(const Tensor& logits, const Tensor* out, const Tensor& token_ids, double scale, double cap,
                  const char* op, const Skip& skip, const RowFunction& program) {
  using acc_t = acc_type<scalar_t>;
  const LogitsView in = view_logits(logits, op);
  const int64_t* ids = checked_ids(token_ids, in, op);
  const int64_t out_stride = out ? view_logits(*out, op).stride : 0;
  const auto* z = static_cast<const scalar_t*>(logits.data_ptr());
  auto* g = out ? static_cast<scalar_t*>(out->data_ptr()) : nullptr;
  const Squash<acc_t> squash = make_squash<acc_t>(scale, cap);
  const int64_t per_block = rows_per_block(in.vocab), blocks = (in.rows + per_block - 1) / per_block;
  torch::stable::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin * per_block; t < std::min(end * per_block, in.rows); ++t) {
      const scalar_t* row = z + t * in.stride;
      Coefficients<acc_t> c;
      RowStats<acc_t> s{0, 0, 0};
      if (!skip(t)) {
        s = row_stats(row, in.vocab, ids[t], squash);
        c = program(t, s);
      }
      if (g) write_grad(g + t * out_stride, row, in.vocab, ids[t], squash, s, c);
    }
  });
}

}  // namespace univg
