// box_iou and its gradients for CUDA tensors: a thread to a pair; a block to a box whose gradient is a sum over others.
// Sums are made in an order that depends on sizes only.
#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>

#include <algorithm>
#include <tuple>

#include "../box_overlap.h"
#include "../common.h"

namespace univg::gpu {
namespace {

constexpr int kThreads = 256;

__device__ int64_t thread_index() { return int64_t(blockIdx.x) * kThreads + threadIdx.x; }

// Pair i is (i, i), or (i / columns, i % columns) where `columns` is not 0.
template <class real, bool giou, bool univg_r1>
__global__ void __launch_bounds__(kThreads)
    values_kernel(const real* a, const real* b, int64_t pairs, int64_t columns, real* out) {
  const int64_t i = thread_index();
  if (i >= pairs) return;
  const int64_t row = columns ? i / columns : i, column = columns ? i % columns : i;
  out[i] = static_cast<real>(Pair<giou, univg_r1>(a + 4 * row, b + 4 * column).value());
}

template <class real, bool giou, bool univg_r1>
__global__ void __launch_bounds__(kThreads)
    gradients_kernel(const real* upstream, const real* a, const real* b, int64_t pairs, real* out_a, real* out_b) {
  const int64_t i = thread_index();
  if (i >= pairs) return;
  Pair<giou, univg_r1>(a + 4 * i, b + 4 * i).gradient(upstream[i], out_a + 4 * i);
  Pair<giou, univg_r1>(b + 4 * i, a + 4 * i).gradient(upstream[i], out_b + 4 * i);
}

// Gradient by box blockIdx.x of `a`, which meets n boxes `b`; their upstream gradients begin at row·blockIdx.x and lie
// `step` apart.
template <class real, bool giou, bool univg_r1>
__global__ void __launch_bounds__(kThreads)
    summed_kernel(const real* upstream, int64_t row, int64_t step, const real* a, const real* b, int64_t n, real* out) {
  __shared__ double sums[4][kThreads];
  const int64_t box = blockIdx.x;
  double sum[4] = {0, 0, 0, 0};
  for (int64_t j = threadIdx.x; j < n; j += kThreads) {
    double part[4];
    Pair<giou, univg_r1>(a + 4 * box, b + 4 * j).gradient(upstream[row * box + step * j], part);
    for (int k = 0; k < 4; ++k) sum[k] += part[k];
  }
  for (int k = 0; k < 4; ++k) sums[k][threadIdx.x] = sum[k];
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half)
      for (int k = 0; k < 4; ++k) sums[k][threadIdx.x] += sums[k][threadIdx.x + half];
  }
  if (threadIdx.x == 0)
    for (int k = 0; k < 4; ++k) out[4 * box + k] = static_cast<real>(sums[k][0]);
}

template <class real>
real* pointer(const Tensor& t, int64_t count, int device, const char* name) {
  UNIVG_CHECK(t.is_cuda() && t.get_device() == device, "box_iou: ", name, ": expected a tensor on cuda:", device);
  UNIVG_CHECK(t.scalar_type() == type_of<real>() && t.is_contiguous() && t.numel() == count, "box_iou: ", name,
              ": expected ", count, " contiguous elements of ", torch::headeronly::toString(type_of<real>()));
  return static_cast<real*>(t.data_ptr());
}

unsigned blocks(int64_t pairs) {
  const int64_t count = (pairs + kThreads - 1) / kThreads;
  UNIVG_CHECK(count <= INT32_MAX, "box_iou: expected at most ", INT32_MAX, " blocks of ", kThreads, " pairs");
  return static_cast<unsigned>(count);
}

cudaStream_t stream_of(int device) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

void check_launch() {
  const cudaError_t error = cudaGetLastError();
  UNIVG_CHECK(error == cudaSuccess, "box_iou: launch: ", cudaGetErrorString(error));
}

struct Sizes {
  int device;
  int64_t n, m, pairs, columns;
};

Sizes sizes_of(const Tensor& boxes1, const Tensor& boxes2, bool pairwise, bool giou, bool univg_r1) {
  UNIVG_CHECK(boxes1.dim() == 2 && boxes1.size(1) == 4 && boxes2.dim() == 2 && boxes2.size(1) == 4,
              "box_iou: boxes: expected [n, 4]");
  UNIVG_CHECK(!(giou && univg_r1), "box_iou: giou knows no univg_r1");
  const int64_t n = boxes1.size(0), m = boxes2.size(0);
  UNIVG_CHECK(pairwise || n == m, "box_iou: boxes2: expected ", n, " boxes like boxes1, got ", m);
  return {static_cast<int>(boxes1.get_device()), n, m, pairwise ? n * m : n, pairwise ? m : 0};
}

template <class F>
auto dispatch(const Tensor& boxes, bool giou, bool univg_r1, F&& f) {
  using no = std::false_type;
  using yes = std::true_type;
  const auto of = [&](auto real) {
    return giou ? f(real, yes{}, no{}) : (univg_r1 ? f(real, no{}, yes{}) : f(real, no{}, no{}));
  };
  return boxes.scalar_type() == ScalarType::Double ? of(double{}) : of(float{});
}

Tensor box_iou(const Tensor& boxes1, const Tensor& boxes2, bool pairwise, bool giou, bool univg_r1) {
  const Sizes s = sizes_of(boxes1, boxes2, pairwise, giou, univg_r1);
  return dispatch(boxes1, giou, univg_r1, [&](auto tag, auto is_giou, auto is_r1) {
    using real = decltype(tag);
    const torch::stable::accelerator::DeviceGuard guard(s.device);
    const real *a = pointer<real>(boxes1, 4 * s.n, s.device, "boxes1"),
               *b = pointer<real>(boxes2, 4 * s.m, s.device, "boxes2");
    Tensor out = pairwise ? make<real>(boxes1, {s.n, s.m}) : make<real>(boxes1, {s.n});
    if (s.pairs == 0) return out;
    values_kernel<real, decltype(is_giou)::value, decltype(is_r1)::value>
        <<<blocks(s.pairs), kThreads, 0, stream_of(s.device)>>>(a, b, s.pairs, s.columns,
                                                                static_cast<real*>(out.data_ptr()));
    check_launch();
    return out;
  });
}

std::tuple<Tensor, Tensor> box_iou_backward(const Tensor& grad, const Tensor& boxes1, const Tensor& boxes2,
                                            bool pairwise, bool giou, bool univg_r1) {
  const Sizes s = sizes_of(boxes1, boxes2, pairwise, giou, univg_r1);
  return dispatch(boxes1, giou, univg_r1, [&](auto tag, auto is_giou, auto is_r1) {
    using real = decltype(tag);
    constexpr bool g = decltype(is_giou)::value, r = decltype(is_r1)::value;
    const torch::stable::accelerator::DeviceGuard guard(s.device);
    const real *a = pointer<real>(boxes1, 4 * s.n, s.device, "boxes1"),
               *b = pointer<real>(boxes2, 4 * s.m, s.device, "boxes2"),
               *up = pointer<real>(grad, s.pairs, s.device, "grad");
    Tensor grad1 = make<real>(boxes1, {s.n, 4}), grad2 = make<real>(boxes2, {s.m, 4});
    auto *g1 = static_cast<real*>(grad1.data_ptr()), *g2 = static_cast<real*>(grad2.data_ptr());
    const cudaStream_t stream = stream_of(s.device);
    UNIVG_CHECK(std::max(s.n, s.m) <= INT32_MAX, "box_iou: expected at most ", INT32_MAX, " boxes");
    if (!pairwise && s.n > 0)
      gradients_kernel<real, g, r><<<blocks(s.n), kThreads, 0, stream>>>(up, a, b, s.n, g1, g2);
    if (pairwise && s.n > 0)
      summed_kernel<real, g, r><<<static_cast<unsigned>(s.n), kThreads, 0, stream>>>(up, s.m, 1, a, b, s.m, g1);
    if (pairwise && s.m > 0)
      summed_kernel<real, g, r><<<static_cast<unsigned>(s.m), kThreads, 0, stream>>>(up, 1, s.m, b, a, s.n, g2);
    check_launch();
    return std::make_tuple(grad1, grad2);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(univg_kernels, CUDA, m) {
  m.impl("box_iou", TORCH_BOX(&box_iou));
  m.impl("box_iou_backward", TORCH_BOX(&box_iou_backward));
}

}  // namespace univg::gpu
