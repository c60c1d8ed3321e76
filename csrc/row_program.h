// The row program: log-probability of one row -> its loss, its gradient and its metrics. All loss variants live here;
// the heads that make log-probabilities know nothing of them. A loss type is one entry of `policy`.
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>
#include <string_view>
#include <vector>

#include "common.h"

namespace univg {

enum class LossType { grpo };

inline LossType parse_loss_type(std::string_view name) {
  if (name == "grpo") return LossType::grpo;
  STD_TORCH_CHECK(false, "loss_type: expected grpo, got ", std::string(name));
}

struct PolicySettings {
  LossType loss_type;
  double epsilon_low, epsilon_high, delta, beta;  // delta: infinity for none
};

// Coefficients that a row hands to its head: a = dL/dlogp, b = dL/dentropy.
template <class acc_t>
struct Coefficients {
  acc_t a = 0, b = 0;
  bool active() const { return a != 0 || b != 0; }
};

// Per-row inputs [N]; old and ref may be null.
template <class acc_t>
struct PolicyInputs {
  const acc_t *advantage, *phi, *weight, *old_logp, *ref_logp;
};

template <class acc_t>
struct RowRecord {
  acc_t loss = 0, kl = 0, entropy = 0, ratio = 0, difference = 0;
  bool counts = false, low = false, high = false;
};

template <class acc_t>
struct Term {
  acc_t value, slope;  // of one row: the term and its derivative by logp
};

// -min(min(ratio, delta)·A, clip(ratio)·A); bounds belong to the side that moves, as torch.clamp has it.
template <class acc_t>
Term<acc_t> clipped_surrogate(acc_t ratio, acc_t advantage, const PolicySettings& s) {
  const acc_t low = 1 - s.epsilon_low, high = 1 + s.epsilon_high, delta = s.delta;
  const acc_t slope = ratio * advantage;
  const acc_t free = std::min(ratio, delta) * advantage;
  const acc_t clipped = std::min(std::max(ratio, low), high) * advantage;
  if (free <= clipped) return {-free, ratio <= delta ? -slope : 0};
  return {-clipped, ratio >= low && ratio <= high ? -slope : 0};
}

template <class acc_t>
Term<acc_t> policy(acc_t ratio, acc_t advantage, const PolicySettings& s) {
  switch (s.loss_type) {
    case LossType::grpo: return clipped_surrogate(ratio, advantage, s);
  }
  return {0, 0};
}

// k3 = exp(d) - d - 1 with d = ref - logp.
template <class acc_t>
Term<acc_t> kl_term(acc_t logp, acc_t ref) {
  const acc_t d = ref - logp;
  return {std::expm1(d) - d, -std::expm1(d)};
}

// One row: L_t = weight·(phi·policy + beta·kl).
template <class acc_t>
Coefficients<acc_t> policy_row(int64_t t, acc_t logp, acc_t entropy, const PolicyInputs<acc_t>& in,
                               const PolicySettings& s, RowRecord<acc_t>& out) {
  const acc_t weight = in.weight[t], advantage = in.advantage[t];
  const acc_t difference = in.old_logp ? logp - in.old_logp[t] : acc_t(0);
  const acc_t ratio = std::exp(difference), seen = std::min(ratio, acc_t(s.delta));
  const Term<acc_t> p = policy(ratio, advantage, s);
  Term<acc_t> k{0, 0};
  if (in.ref_logp) k = kl_term(logp, in.ref_logp[t]);
  out.loss = weight * (in.phi[t] * p.value + acc_t(s.beta) * k.value);
  out.kl = k.value;
  out.entropy = entropy;
  out.ratio = ratio;
  out.difference = std::abs(difference);
  out.counts = true;
  out.low = advantage < 0 && seen < acc_t(1 - s.epsilon_low);
  out.high = advantage > 0 && seen > acc_t(1 + s.epsilon_high);
  return {weight * (in.phi[t] * p.slope + acc_t(s.beta) * k.slope), 0};
}

// Sums in row order, whatever the number of threads was. The order of the metrics is METRICS in metrics.py.
template <class acc_t>
std::tuple<Tensor, Tensor> reduce_rows(const std::vector<RowRecord<acc_t>>& rows, const Tensor& like) {
  double loss = 0, sums[6] = {0}, ratio_max = 0, difference_max = 0;
  for (const auto& r : rows) {
    if (!r.counts) continue;
    loss += r.loss;
    const double terms[6] = {1, r.kl, r.entropy, double(r.low), double(r.high), r.ratio};
    for (int i = 0; i < 6; ++i) sums[i] += terms[i];
    // Written so that NaN is kept, not lost.
    if (!(r.ratio <= ratio_max)) ratio_max = r.ratio;
    if (!(r.difference <= difference_max)) difference_max = r.difference;
  }
  Tensor total = make<acc_t>(like, {}), metrics = make<float>(like, {8});
  *static_cast<acc_t*>(total.data_ptr()) = loss;
  float* m = static_cast<float*>(metrics.data_ptr());
  std::copy(sums, sums + 6, m);
  m[6] = ratio_max;
  m[7] = difference_max;
  return {total, metrics};
}

}  // namespace univg
