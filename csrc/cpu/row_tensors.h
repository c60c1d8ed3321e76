// What the policy ops have in common on the CPU: their row tensors, and the sums behind loss and metrics.
#pragma once
#include <algorithm>
#include <vector>

#include "../program.h"

namespace univg {

template <class acc_t>
RowInputs<acc_t> pointers(const RowTensors& rows, int64_t n) {
  return {data<acc_t>(rows.advantage, n, "advantage"),
          data<acc_t>(rows.phi, n, "phi"),
          data<acc_t>(rows.weight, n, "weight"),
          data<acc_t>(rows.entropy_weight, n, "entropy_weight"),
          data<acc_t>(rows.entropy_threshold, 1, "entropy_threshold"),
          data<acc_t>(rows.old_logp, n, "old_logp"),
          data<acc_t>(rows.ref_logp, n, "ref_logp"),
          data<acc_t>(rows.sampling_logp, n, "sampling_logp"),
          data<acc_t>(rows.importance, n, "given_importance")};
}

inline const int64_t* checked_offsets(const Tensor& cu_seqlens, int64_t rows, const char* op) {
  const int64_t count = cu_seqlens.numel() - 1;
  const int64_t* cu = data<int64_t>(cu_seqlens, count + 1, "cu_seqlens");
  bool fits = count >= 0 && cu[0] == 0 && cu[count] == rows;
  for (int64_t i = 0; i < count; ++i) fits = fits && cu[i] <= cu[i + 1];
  UNIVG_CHECK(fits, op, ": cu_seqlens: expected offsets that begin with 0, never fall and end at ", rows);
  return cu;
}

// Loss and METRICS of metrics.py over some rows. Who adds up does so in an order that no number of threads changes:
// rows of a block (a response, or rows whose number does not depend on the threads), then blocks.
struct Totals {
  double loss = 0, kl = 0, entropy = 0, ratio = 0, importance = 0;
  int64_t rows = 0, low = 0, high = 0, dropped = 0;
  double largest_ratio = 0, largest_difference = 0, largest_importance = 0, largest_sampling = 0;

  template <class acc_t>
  void add(const Row<acc_t>& row, const Score<acc_t>& s) {
    loss += s.loss, kl += s.kl, entropy += row.entropy, ratio += s.ratio, importance += s.importance;
    ++rows, low += s.low, high += s.high, dropped += s.dropped;
    enlarge(largest_ratio, s.ratio), enlarge(largest_importance, s.importance);
    enlarge(largest_difference, std::abs(row.difference)), enlarge(largest_sampling, std::abs(row.sampling_difference));
  }
  void add(const Totals& x) {
    loss += x.loss, kl += x.kl, entropy += x.entropy, ratio += x.ratio, importance += x.importance;
    rows += x.rows, low += x.low, high += x.high, dropped += x.dropped;
    enlarge(largest_ratio, x.largest_ratio), enlarge(largest_importance, x.largest_importance);
    enlarge(largest_difference, x.largest_difference), enlarge(largest_sampling, x.largest_sampling);
  }
  static void enlarge(double& largest, double x) {
    if (x > largest || x != x) largest = x;  // a NaN stays
  }
};

// (loss, metrics)
template <class acc_t>
std::tuple<Tensor, Tensor> total(const std::vector<Totals>& blocks, const Tensor& like) {
  Totals t;
  for (const Totals& block : blocks) t.add(block);
  const double values[] = {double(t.rows), t.kl,         t.entropy,       double(t.low),        double(t.high),
                           t.ratio,        t.importance, double(t.dropped), t.largest_ratio, t.largest_difference,
                           t.largest_importance, t.largest_sampling};
  Tensor loss = make<acc_t>(like, {}), metrics = make<float>(like, {std::ssize(values)});
  *static_cast<acc_t*>(loss.data_ptr()) = t.loss;
  std::copy(std::begin(values), std::end(values), static_cast<float*>(metrics.data_ptr()));
  return {loss, metrics};
}

}  // namespace univg
