// log p(token) and entropy of logits rows, and their backward pass.
#include "row_loop.h"

namespace univg {
namespace {

// Rows where mask is false are not read: all three are 0 there.
std::tuple<Tensor, Tensor, Tensor> logprob(const Tensor& logits, const Tensor& token_ids, double scale, double cap,
                                           const std::optional<Tensor>& mask) {
  return dispatch_float(logits, "logprob", [&](auto tag) -> std::tuple<Tensor, Tensor, Tensor> {
    using scalar_t = decltype(tag);
    using acc_t = acc_type<scalar_t>;
    const int64_t n = view_logits(logits, "logprob").rows;
    const bool* counts = data<bool>(mask, n, "mask");
    Tensor logp = make<acc_t>(logits, {n}), entropy = make<acc_t>(logits, {n}), lse = make<double>(logits, {n});
    auto *lp = data<acc_t>(logp, n, "logp"), *h = data<acc_t>(entropy, n, "entropy");
    double* l = data<double>(lse, n, "lse");
    for_each_row<scalar_t>(
        logits, nullptr, token_ids, scale, cap, "logprob",
        [&](int64_t t) {
          lp[t] = h[t] = 0, l[t] = 0;
          return counts && !counts[t];
        },
        [&](int64_t t, const RowStats<acc_t>& s) {
          lp[t] = s.logp, h[t] = s.entropy, l[t] = s.lse;
          return Coefficients<acc_t>{};
        });
    return {logp, entropy, lse};
  });
}

void backward_into(const Tensor& out, const Tensor& logits, const Tensor& token_ids, const Tensor& lse,
                   const Tensor& entropy, const Tensor& grad_logp, const Tensor& grad_entropy, double scale,
                   double cap) {
  dispatch_float(logits, "logprob_backward", [&](auto tag) {
    using scalar_t = decltype(tag);
    using acc_t = acc_type<scalar_t>;
    const LogitsView in = view_logits(logits, "logprob_backward");
    const int64_t n = in.rows, out_stride = view_logits(out, "logprob_backward").stride;
    const int64_t* ids = checked_ids(token_ids, in, "logprob_backward");
    const double* l = data<double>(lse, n, "lse");
    const auto* h = data<acc_t>(entropy, n, "entropy");
    const auto *a = data<acc_t>(grad_logp, n, "grad_logp"), *b = data<acc_t>(grad_entropy, n, "grad_entropy");
    const auto* z = static_cast<const scalar_t*>(logits.data_ptr());
    auto* g = static_cast<scalar_t*>(out.data_ptr());
    const Squash<acc_t> squash = make_squash<acc_t>(scale, cap);
    torch::stable::parallel_for(0, n, rows_per_block(in.vocab), [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t)
        write_grad(g + t * out_stride, z + t * in.stride, in.vocab, ids[t], squash, RowStats<acc_t>{0, h[t], l[t]},
                   Coefficients<acc_t>{a[t], b[t]});
    });
  });
}

Tensor logprob_backward(const Tensor& logits, const Tensor& token_ids, const Tensor& lse, const Tensor& entropy,
                        const Tensor& grad_logp, const Tensor& grad_entropy, double scale, double cap) {
  Tensor out = torch::stable::new_empty(logits, logits.sizes());
  backward_into(out, logits, token_ids, lse, entropy, grad_logp, grad_entropy, scale, cap);
  return out;
}

void logprob_backward_(const Tensor& logits, const Tensor& token_ids, const Tensor& lse, const Tensor& entropy,
                       const Tensor& grad_logp, const Tensor& grad_entropy, double scale, double cap) {
  backward_into(logits, logits, token_ids, lse, entropy, grad_logp, grad_entropy, scale, cap);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(univg_kernels, CPU, m) {
  m.impl("logprob", TORCH_BOX(&logprob));
  m.impl("logprob_backward", TORCH_BOX(&logprob_backward));
  m.impl("logprob_backward_", TORCH_BOX(&logprob_backward_));
}

}  // namespace univg
