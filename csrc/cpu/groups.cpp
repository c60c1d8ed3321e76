// Group statistics and the difficulty weight.
#include <cmath>

#include "../common.h"

namespace univg {
namespace {

// Calls f(k, begin, end) for each group.
template <class F>
void for_each_group(const Tensor& cu_groups, int64_t items, const F& f) {
  const int64_t count = cu_groups.numel() - 1;
  const int64_t* cu = data<int64_t>(cu_groups, count + 1, "cu_groups");
  for (int64_t k = 0; k < count; ++k) {
    UNIVG_CHECK(0 <= cu[k] && cu[k] <= cu[k + 1] && cu[k + 1] <= items,
                "cu_groups: expected offsets that never fall, up to ", items);
    f(k, cu[k], cu[k + 1]);
  }
}

// Mean and ddof-1 standard deviation relative to the first value: equal values then give a deviation of exactly 0.
template <class acc_t>
struct Spread {
  double shift = 0, mean_offset = 0, std = 0;
  Spread(const acc_t* x, int64_t begin, int64_t end) {
    if (begin == end) return;
    shift = x[begin];
    double m2 = 0;
    for (int64_t i = begin; i < end; ++i) {  // Welford
      const double offset = x[i] - shift, step = offset - mean_offset;
      mean_offset += step / double(i - begin + 1);
      m2 += step * (offset - mean_offset);
    }
    if (end - begin > 1) std = std::sqrt(m2 / double(end - begin - 1));
  }
  double centred(double x) const { return (x - shift) - mean_offset; }
};

std::tuple<Tensor, Tensor, Tensor> group_advantage(const Tensor& rewards, const Tensor& cu_groups,
                                                   const std::string& scale, double eps, bool center_singletons) {
  return dispatch_float(rewards, "group_advantage", [&](auto tag) -> std::tuple<Tensor, Tensor, Tensor> {
    using acc_t = acc_type<decltype(tag)>;
    const int64_t b = rewards.numel(), k = cu_groups.numel() - 1;
    const auto* r = data<acc_t>(rewards, b, "rewards");
    Tensor advantages = make<acc_t>(rewards, {b}), mean = make<acc_t>(rewards, {k}), std = make<acc_t>(rewards, {k});
    auto *a = data<acc_t>(advantages, b, "advantages"), *m = data<acc_t>(mean, k, "mean"),
         *s = data<acc_t>(std, k, "std");
    const double batch_std = Spread<acc_t>(r, 0, b).std;
    for_each_group(cu_groups, b, [&](int64_t g, int64_t begin, int64_t end) {
      const Spread<acc_t> spread(r, begin, end);
      m[g] = spread.shift + spread.mean_offset;
      s[g] = spread.std;
      const bool as_it_is = end - begin == 1 && !center_singletons;
      const double group_std = as_it_is ? 1.0 : spread.std;
      const double divisor = scale == "group" ? group_std + eps : scale == "batch" ? batch_std + eps : 1.0;
      for (int64_t i = begin; i < end; ++i) a[i] = (as_it_is ? double(r[i]) : spread.centred(r[i])) / divisor;
    });
    return {advantages, mean, std};
  });
}

Tensor group_mean(const Tensor& values, const Tensor& cu_groups) {
  return dispatch_float(values, "group_mean", [&](auto tag) {
    using acc_t = acc_type<decltype(tag)>;
    const int64_t b = values.numel(), k = cu_groups.numel() - 1;
    const auto* x = data<acc_t>(values, b, "values");
    Tensor mean = make<acc_t>(values, {k});
    auto* m = data<acc_t>(mean, k, "mean");
    for_each_group(cu_groups, b, [&](int64_t g, int64_t begin, int64_t end) {
      double sum = 0;
      for (int64_t i = begin; i < end; ++i) sum += x[i];
      m[g] = end > begin ? sum / double(end - begin) : 0.0;
    });
    return mean;
  });
}

Tensor difficulty_weight(const Tensor& miou, const std::string& kind, double power, bool normalize) {
  return dispatch_float(miou, "difficulty_weight", [&](auto tag) {
    using acc_t = acc_type<decltype(tag)>;
    const int64_t k = miou.numel();
    const auto* m = data<acc_t>(miou, k, "miou");
    Tensor phi = make<acc_t>(miou, {k});
    auto* f = data<acc_t>(phi, k, "phi");
    double sum = 0;
    for (int64_t g = 0; g < k; ++g) {
      const double x = m[g];
      const double value = kind == "exp"     ? std::exp(1.0 - x)
                           : kind == "power" ? std::pow(1.05 - x, power)
                           : kind == "log"   ? -std::log(0.02 + x)
                                             : 1.0;
      f[g] = value;
      sum += value;
    }
    if (normalize)
      for (int64_t g = 0; g < k; ++g) f[g] /= sum / double(k);
    return phi;
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(univg_kernels, CPU, m) {
  m.impl("group_advantage", TORCH_BOX(&group_advantage));
  m.impl("group_mean", TORCH_BOX(&group_mean));
  m.impl("difficulty_weight", TORCH_BOX(&difficulty_weight));
}

}  // namespace univg
