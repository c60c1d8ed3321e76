// Records of rows -> loss and metrics, in an order that depends on the number of rows alone.
#pragma once
#include "grpo_rows.cuh"

namespace univg::gpu {

// What becomes of the records: the loss, then METRICS of metrics.py. Sums first, then maxima.
constexpr int kSums = 9, kMaxima = 4;

UNIVG_DEVICE int source_of(int result) {
  switch (result - kSums) {
    case 0: return record_ratio;
    case 1: return record_difference;
    case 2: return record_importance;
    case 3: return record_sampling_difference;
    default: return result;
  }
}

UNIVG_DEVICE double combined(double x, double y, bool largest) {
  return largest ? (y > x || y != y ? y : x) : x + y;  // NaN stays
}

// One CTA for each result; a power of two of threads, with one double each of shared memory.
UNIVG_DEVICE void reduce_records(const float* records, int64_t rows, float* loss, float* metrics) {
  const int result = static_cast<int>(cluster_index());
  const bool largest = result >= kSums;
  const float* source = records + source_of(result) * rows;
  double own = 0;
  for (int64_t t = thread(); t < rows; t += threads()) own = combined(own, load_element(source + t), largest);
  auto* all = reinterpret_cast<double*>(shared_memory());
  all[thread()] = own;
  for (int half = threads() / 2; half > 0; half /= 2) {
    sync_block();
    if (thread() < half) all[thread()] = combined(all[thread()], all[thread() + half], largest);
  }
  if (thread() == 0) store_element(result == 0 ? loss : metrics + result - 1, static_cast<float>(all[0]));
}

}  // namespace univg::gpu
