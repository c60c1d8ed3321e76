// log p(token) and entropy of logits rows, and their backward pass.
#include "row_loop.h"

namespace univg {
namespace {

std::tuple<Tensor, Tensor, Tensor> logprob(const Tensor& logits, const Tensor& token_ids, double temperature) {
  return dispatch_float(logits, "logprob", [&](auto tag) -> std::tuple<Tensor, Tensor, Tensor> {
    using scalar_t = decltype(tag);
    using acc_t = acc_type<scalar_t>;
    const int64_t n = view_logits(logits, "logprob").rows;
    Tensor logp = make<acc_t>(logits, {n}), entropy = make<acc_t>(logits, {n}), lse = make<acc_t>(logits, {n});
    auto *lp = data<acc_t>(logp, n, "logp"), *h = data<acc_t>(entropy, n, "entropy"), *l = data<acc_t>(lse, n, "lse");
    for_each_row<scalar_t>(
        logits, nullptr, data<int64_t>(token_ids, n, "token_ids"), temperature, "logprob",
        [](int64_t) { return false; },
        [&](int64_t t, const RowStats<acc_t>& s) {
          lp[t] = s.logp, h[t] = s.entropy, l[t] = s.lse;
          return Coefficients<acc_t>{};
        });
    return {logp, entropy, lse};
  });
}

void backward_into(const Tensor& out, const Tensor& logits, const Tensor& token_ids, const Tensor& lse,
                   const Tensor& entropy, const Tensor& grad_logp, const Tensor& grad_entropy, double temperature) {
  dispatch_float(logits, "logprob_backward", [&](auto tag) {
    using scalar_t = decltype(tag);
    using acc_t = acc_type<scalar_t>;
    const LogitsView in = view_logits(logits, "logprob_backward");
    const int64_t n = in.rows, out_stride = view_logits(out, "logprob_backward").stride;
    const auto *l = data<acc_t>(lse, n, "lse"), *h = data<acc_t>(entropy, n, "entropy");
    const auto *a = data<acc_t>(grad_logp, n, "grad_logp"), *b = data<acc_t>(grad_entropy, n, "grad_entropy");
    const int64_t* ids = data<int64_t>(token_ids, n, "token_ids");
    const auto* z = static_cast<const scalar_t*>(logits.data_ptr());
    auto* g = static_cast<scalar_t*>(out.data_ptr());
    for (int64_t t = 0; t < n; ++t) check_id(ids[t], in.vocab, "logprob_backward");
    torch::stable::parallel_for(0, n, 1, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t)
        row_grad(g + t * out_stride, z + t * in.stride, in.vocab, ids[t], static_cast<acc_t>(1.0 / temperature), l[t],
                 h[t], a[t], b[t]);
    });
  });
}

Tensor logprob_backward(const Tensor& logits, const Tensor& token_ids, const Tensor& lse, const Tensor& entropy,
                        const Tensor& grad_logp, const Tensor& grad_entropy, double temperature) {
  Tensor out = torch::stable::new_empty(logits, logits.sizes());
  backward_into(out, logits, token_ids, lse, entropy, grad_logp, grad_entropy, temperature);
  return out;
}

void logprob_backward_(const Tensor& logits, const Tensor& token_ids, const Tensor& lse, const Tensor& entropy,
                       const Tensor& grad_logp, const Tensor& grad_entropy, double temperature) {
  backward_into(logits, logits, token_ids, lse, entropy, grad_logp, grad_entropy, temperature);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(univg_kernels, CPU, m) {
  m.impl("logprob", TORCH_BOX(&logprob));
  m.impl("logprob_backward", TORCH_BOX(&logprob_backward));
  m.impl("logprob_backward_", TORCH_BOX(&logprob_backward_));
}

}  // namespace univg
