// How the kernels are launched.
#pragma once
#include <cuda_runtime.h>

#include "../common.h"
#include "reduce_records.cuh"

namespace univg::gpu {

inline void check(cudaError_t error, const char* what) {
  UNIVG_CHECK(error == cudaSuccess, "grpo_head: ", what, ": ", cudaGetErrorString(error));
}

inline int device_attribute(cudaDeviceAttr attribute, int device) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, attribute, device), "cudaDeviceGetAttribute");
  return value;
}

constexpr int kReduceThreads = 1024;

// The bounds mean 48 registers: 1280 threads, five CTAs of 256, on a multiprocessor.
template <class T, bool kCap>
__global__ void __launch_bounds__(640, 2) grpo_rows_kernel(const __grid_constant__ GrpoRows<T> g) {
  grpo_row<T, kCap>(g);
}

__global__ void __launch_bounds__(kReduceThreads)
    reduce_records_kernel(const float* records, int64_t rows, float* loss, float* metrics) {
  reduce_records(records, rows, loss, metrics);
}

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), int64_t clusters, int ranks, int threads, int shared_bytes,
            cudaStream_t stream, const Arguments&... arguments) {
  const auto* function = reinterpret_cast<const void*>(kernel);
  check(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes), "shared memory");
  check(cudaFuncSetAttribute(function, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared),
        "shared memory carveout");
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {static_cast<unsigned>(ranks), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(clusters * ranks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = 1;
  check(cudaLaunchKernelEx(&config, kernel, arguments...), "launch");
}

// Device and stream are the current ones. The logits' columns must fit: `plan` says whether they do.
template <class T>
void launch_rows(const GrpoRows<T>& g, const Plan& plan, cudaStream_t stream) {
  if (g.rows == 0) return;
  auto* kernel = g.knee > 0 ? grpo_rows_kernel<T, true> : grpo_rows_kernel<T, false>;
  launch(kernel, g.rows, plan.ranks, plan.threads, static_cast<int>(sizeof(Shared)) + plan.slice_bytes, stream, g);
}

inline void launch_reduction(const float* records, int64_t rows, float* loss, float* metrics, cudaStream_t stream) {
  launch(reduce_records_kernel, kSums + kMaxima, 1, kReduceThreads, kReduceThreads * int(sizeof(double)), stream,
         records, rows, loss, metrics);
}

}  // namespace univg::gpu
