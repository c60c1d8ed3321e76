// What responses are worth, spread over their rows: RowTerms of _row_terms.py without its entropy bonus.
#include "row_tensors.h"

namespace univg {
namespace {

using MaybeTensor = std::optional<Tensor>;

// like: [N] in the dtype of the maths. norm: what "seq-mean-token-sum-norm" divides by. importance: empty for none.
std::tuple<Tensor, Tensor, Tensor, Tensor> row_terms(const Tensor& like, const Tensor& cu_seqlens,
                                                     const MaybeTensor& mask, const MaybeTensor& advantages,
                                                     const MaybeTensor& token_advantages, const MaybeTensor& phi,
                                                     const MaybeTensor& importance_ratio,
                                                     const MaybeTensor& denominator, const std::string& aggregation,
                                                     bool count_empty, double norm) {
  UNIVG_CHECK(advantages || token_advantages, "row_terms: expected advantages or token_advantages, got neither");
  return dispatch_float(like, "row_terms", [&](auto tag) -> std::tuple<Tensor, Tensor, Tensor, Tensor> {
    using acc_t = acc_type<decltype(tag)>;
    const int64_t n = like.numel(), responses = cu_seqlens.numel() - 1;
    const int64_t* cu = checked_offsets(cu_seqlens, n, "row_terms");
    const bool* counts = data<bool>(mask, n, "mask");
    const auto *of_response = data<acc_t>(advantages, responses, "advantages"),
               *of_row = data<acc_t>(token_advantages, n, "token_advantages"), *f = data<acc_t>(phi, responses, "phi"),
               *r = data<acc_t>(importance_ratio, responses, "importance_ratio"),
               *given = data<acc_t>(denominator, 1, "denominator");
    std::vector<int64_t> lengths(responses);
    int64_t rows = 0, filled = 0;
    for (int64_t i = 0; i < responses; ++i) {
      lengths[i] = cu[i + 1] - cu[i];
      if (counts) lengths[i] = std::count(counts + cu[i], counts + cu[i + 1], true);
      rows += lengths[i], filled += lengths[i] > 0;
    }
    const bool over_rows = aggregation == "token-mean", mean = aggregation == "seq-mean-token-mean";
    const int64_t own = over_rows ? rows : count_empty ? responses : filled;
    const acc_t divisor = given ? *given : acc_t(std::max<int64_t>(own, 1));
    Tensor advantage = make<acc_t>(like, {n}), phi_rows = make<acc_t>(like, {n}), weight = make<acc_t>(like, {n}),
           importance = make<acc_t>(like, {r ? n : 0});
    auto *a = data<acc_t>(advantage, n, "advantage"), *fs = data<acc_t>(phi_rows, n, "phi"),
         *w = data<acc_t>(weight, n, "weight"), *rs = data<acc_t>(importance, r ? n : 0, "importance");
    for (int64_t i = 0; i < responses; ++i) {
      acc_t share = 1 / divisor;
      if (mean) share /= acc_t(std::max<int64_t>(lengths[i], 1));
      if (aggregation == "seq-mean-token-sum-norm") share /= acc_t(norm);
      const int64_t begin = cu[i], end = cu[i + 1];
      for (int64_t t = begin; t < end; ++t) {
        const bool count = !counts || counts[t];
        a[t] = count ? (of_row ? of_row[t] : of_response[i]) : acc_t(0);
        w[t] = count ? share : acc_t(0);
      }
      std::fill(fs + begin, fs + end, f ? f[i] : acc_t(1));
      if (r) std::fill(rs + begin, rs + end, r[i]);
    }
    return {advantage, phi_rows, weight, importance};
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(univg_kernels, CPU, m) { m.impl("row_terms", TORCH_BOX(&row_terms)); }

}  // namespace univg
