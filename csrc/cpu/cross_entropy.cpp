// Weighted cross entropy behind the logits head: a = -weight. Rows of weight 0 are scored, too.
#include "row_loop.h"

namespace univg {
namespace {

std::tuple<Tensor, Tensor, Tensor> ce_head_(const Tensor& logits, const Tensor& token_ids, const Tensor& row_weight,
                                            double scale, double cap) {
  return dispatch_float(logits, "ce_head", [&](auto tag) -> std::tuple<Tensor, Tensor, Tensor> {
    using scalar_t = decltype(tag);
    using acc_t = acc_type<scalar_t>;
    const int64_t n = view_logits(logits, "ce_head").rows;
    const auto* w = data<acc_t>(row_weight, n, "row_weight");
    Tensor loss = make<acc_t>(logits, {}), logp = make<acc_t>(logits, {n}), active = make<bool>(logits, {n});
    auto* lp = data<acc_t>(logp, n, "logp");
    auto* is_active = data<bool>(active, n, "active");
    for_each_row<scalar_t>(
        logits, &logits, token_ids, scale, cap, "ce_head", [](int64_t) { return false; },
        [&](int64_t t, const RowStats<acc_t>& s) {
          lp[t] = s.logp;
          is_active[t] = w[t] != 0;
          return Coefficients<acc_t>{-w[t], 0};
        });
    double total = 0;
    for (int64_t t = 0; t < n; ++t)
      if (w[t] != 0) total -= double(w[t]) * lp[t];
    *data<acc_t>(loss, 1, "loss") = total;
    return {loss, logp, active};
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(univg_kernels, CPU, m) { m.impl("ce_head_", TORCH_BOX(&ce_head_)); }

}  // namespace univg
