// The policy losses: the row program behind the logits head, and alone.
#include "row_loop.h"

namespace univg {
namespace {

using MaybeTensor = std::optional<Tensor>;

template <class acc_t>
PolicyInputs<acc_t> inputs(int64_t n, const Tensor& advantage, const Tensor& phi, const Tensor& weight,
                           const MaybeTensor& old_logp, const MaybeTensor& ref_logp) {
  return {data<acc_t>(advantage, n, "advantage"), data<acc_t>(phi, n, "phi"), data<acc_t>(weight, n, "weight"),
          data<acc_t>(old_logp, n, "old_logp"), data<acc_t>(ref_logp, n, "ref_logp")};
}

// Loss, metrics, logp and active rows of the logits; gradients into `out` unless it is null.
std::tuple<Tensor, Tensor, Tensor, Tensor> run_head(const Tensor& logits, const Tensor* out, const Tensor& token_ids,
                                                    const Tensor& advantage, const Tensor& phi, const Tensor& weight,
                                                    const MaybeTensor& old_logp, const MaybeTensor& ref_logp,
                                                    double temperature, const PolicySettings& settings) {
  return dispatch_float(logits, "grpo_head", [&](auto tag) -> std::tuple<Tensor, Tensor, Tensor, Tensor> {
    using scalar_t = decltype(tag);
    using acc_t = acc_type<scalar_t>;
    const int64_t n = view_logits(logits, "grpo_head").rows;
    const auto in = inputs<acc_t>(n, advantage, phi, weight, old_logp, ref_logp);
    Tensor logp = make<acc_t>(logits, {n}), active = make<bool>(logits, {n});
    auto* lp = data<acc_t>(logp, n, "logp");
    auto* is_active = data<bool>(active, n, "active");
    std::fill(lp, lp + n, acc_t(0));
    std::fill(is_active, is_active + n, false);
    std::vector<RowRecord<acc_t>> records(n);
    for_each_row<scalar_t>(
        logits, out, data<int64_t>(token_ids, n, "token_ids"), temperature, "grpo_head",
        [&](int64_t t) { return in.weight[t] == 0; },
        [&](int64_t t, const RowStats<acc_t>& s) {
          lp[t] = s.logp;
          const auto c = policy_row(t, s.logp, s.entropy, in, settings, records[t]);
          is_active[t] = c.active();
          return c;
        });
    auto [loss, metrics] = reduce_rows(records, logits);
    return {loss, metrics, logp, active};
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> grpo_head(const Tensor& logits, const Tensor& token_ids,
                                                             const Tensor& advantage, const Tensor& phi,
                                                             const Tensor& weight, const MaybeTensor& old_logp,
                                                             const MaybeTensor& ref_logp, const std::string& loss_type,
                                                             double epsilon_low, double epsilon_high, double delta,
                                                             double beta, double temperature, bool with_grad) {
  const PolicySettings settings{parse_loss_type(loss_type), epsilon_low, epsilon_high, delta, beta};
  Tensor grad = with_grad ? torch::stable::new_empty(logits, logits.sizes()) : make<float>(logits, {0});
  auto [loss, metrics, logp, active] = run_head(logits, with_grad ? &grad : nullptr, token_ids, advantage, phi, weight,
                                                old_logp, ref_logp, temperature, settings);
  return {loss, metrics, logp, active, grad};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> grpo_head_(const Tensor& logits, const Tensor& token_ids,
                                                      const Tensor& advantage, const Tensor& phi, const Tensor& weight,
                                                      const MaybeTensor& old_logp, const MaybeTensor& ref_logp,
                                                      const std::string& loss_type, double epsilon_low,
                                                      double epsilon_high, double delta, double beta,
                                                      double temperature) {
  const PolicySettings settings{parse_loss_type(loss_type), epsilon_low, epsilon_high, delta, beta};
  return run_head(logits, &logits, token_ids, advantage, phi, weight, old_logp, ref_logp, temperature, settings);
}

std::tuple<Tensor, Tensor, Tensor> policy_rows(const Tensor& logp, const MaybeTensor& entropy, const Tensor& advantage,
                                               const Tensor& phi, const Tensor& weight, const MaybeTensor& old_logp,
                                               const MaybeTensor& ref_logp, const std::string& loss_type,
                                               double epsilon_low, double epsilon_high, double delta, double beta) {
  const PolicySettings settings{parse_loss_type(loss_type), epsilon_low, epsilon_high, delta, beta};
  return dispatch_float(logp, "policy_rows", [&](auto tag) -> std::tuple<Tensor, Tensor, Tensor> {
    using acc_t = acc_type<decltype(tag)>;
    const int64_t n = logp.numel();
    const auto in = inputs<acc_t>(n, advantage, phi, weight, old_logp, ref_logp);
    const auto *lp = data<acc_t>(logp, n, "logp"), *h = data<acc_t>(entropy, n, "entropy");
    Tensor grad = make<acc_t>(logp, {n});
    auto* g = data<acc_t>(grad, n, "grad");
    std::vector<RowRecord<acc_t>> records(n);
    for (int64_t t = 0; t < n; ++t)
      g[t] = in.weight[t] == 0 ? 0 : policy_row(t, lp[t], h ? h[t] : acc_t(0), in, settings, records[t]).a;
    auto [loss, metrics] = reduce_rows(records, logp);
    return {loss, metrics, grad};
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(univg_kernels, CPU, m) {
  m.impl("grpo_head", TORCH_BOX(&grpo_head));
  m.impl("grpo_head_", TORCH_BOX(&grpo_head_));
  m.impl("policy_rows", TORCH_BOX(&policy_rows));
}

}  // namespace univg
