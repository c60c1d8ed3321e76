// grpo_head and grpo_head_ for CUDA tensors: checks, pointers, launches. The schemas are in library.cpp.
#include <torch/csrc/stable/accelerator.h>

#include <tuple>

#include "../program.h"
#include "launch.cuh"

namespace univg::gpu {
namespace {

// Pointer to contiguous elements of T on `device`.
template <class T>
T* data_on(int device, const Tensor& t, int64_t count, const char* name) {
  UNIVG_CHECK(t.is_cuda() && t.get_device() == device, "grpo_head: ", name, ": expected a tensor on cuda:", device);
  UNIVG_CHECK(t.scalar_type() == type_of<T>(), "grpo_head: ", name, ": expected ",
              torch::headeronly::toString(type_of<T>()), ", got ", torch::headeronly::toString(t.scalar_type()));
  UNIVG_CHECK(t.is_contiguous() && t.numel() == count, "grpo_head: ", name, ": expected ", count,
              " contiguous elements, got ", t.numel());
  return static_cast<T*>(t.data_ptr());
}
template <class T>
T* data_on(int device, const std::optional<Tensor>& t, int64_t count, const char* name) {
  return t ? data_on<T>(device, *t, count, name) : nullptr;
}

RowInputs<float> pointers(int device, const RowTensors& rows, int64_t n) {
  return {data_on<float>(device, rows.advantage, n, "advantage"),
          data_on<float>(device, rows.phi, n, "phi"),
          data_on<float>(device, rows.weight, n, "weight"),
          data_on<float>(device, rows.entropy_weight, n, "entropy_weight"),
          data_on<float>(device, rows.entropy_threshold, 1, "entropy_threshold"),
          data_on<float>(device, rows.old_logp, n, "old_logp"),
          data_on<float>(device, rows.ref_logp, n, "ref_logp"),
          data_on<float>(device, rows.sampling_logp, n, "sampling_logp"),
          data_on<float>(device, rows.importance, n, "given_importance")};
}

// Rows of contiguous columns; the distance between two rows.
int64_t row_stride(const Tensor& t) {
  const int64_t n = t.size(0), v = t.size(1);
  UNIVG_CHECK(v > 0 && (v == 1 || t.stride(1) == 1) && (n <= 1 || t.stride(0) >= v),
              "grpo_head: logits: expected rows of contiguous columns that do not overlap; call .contiguous() first");
  return n <= 1 ? v : t.stride(0);
}

template <class T>
Plan plan_for(const Tensor& logits, int device) {
  UNIVG_CHECK(device_attribute(cudaDevAttrComputeCapabilityMajor, device) >= 9,
              "grpo_head: expected a GPU with thread-block clusters (compute capability 9.0); use backend='triton'");
  const int most = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device) - static_cast<int>(sizeof(Shared));
  const int64_t longest = int64_t(kMostRanks) * (most / kVectorBytes) * kColumns<T>, columns = logits.size(1);
  UNIVG_CHECK(columns <= longest, "grpo_head: logits: expected at most ", longest,
              " columns (what eight CTAs can hold on chip), got ", columns, "; use backend='triton'");
  UNIVG_CHECK(logits.size(0) <= INT32_MAX / kMostRanks, "grpo_head: logits: expected at most ", INT32_MAX / kMostRanks,
              " rows, got ", logits.size(0));
  return plan_rows(static_cast<int>(columns / kColumns<T>), most);
}

struct Result {
  Tensor loss, metrics, logp, active;
};

template <class T>
Result run(const Tensor& logits, const Tensor* out, const Tensor& ids, const RowTensors& rows,
           const Program<double>& program, double scale, double cap) {
  const int device = logits.get_device();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const Plan plan = plan_for<T>(logits, device);
  const int64_t n = logits.size(0);
  const Result result{make<float>(logits, {}), make<float>(logits, {kSums - 1 + kMaxima}), make<float>(logits, {n}),
                      make<bool>(logits, {n})};
  const Tensor records = make<float>(logits, {num_records, n});
  GrpoRows<T> g{};
  g.logits = static_cast<const T*>(logits.data_ptr());
  g.gradient = out ? static_cast<T*>(out->data_ptr()) : nullptr;
  g.rows = n;
  g.stride = row_stride(logits);
  g.gradient_stride = out ? row_stride(*out) : 0;
  g.columns = static_cast<int>(logits.size(1));
  g.ids = data_on<int64_t>(device, ids, n, "token_ids");
  g.scale = static_cast<float>(scale);
  g.knee = static_cast<float>(cap / scale);
  g.inputs = pointers(device, rows, n);
  g.program = cast_program<float>(program);
  g.logp = data_on<float>(device, result.logp, n, "logp");
  g.active = data_on<bool>(device, result.active, n, "active");
  g.records = data_on<float>(device, records, num_records * n, "records");
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  launch_rows(g, plan, static_cast<cudaStream_t>(stream));
  launch_reduction(g.records, n, data_on<float>(device, result.loss, 1, "loss"),
                   data_on<float>(device, result.metrics, result.metrics.numel(), "metrics"),
                   static_cast<cudaStream_t>(stream));
  return result;
}

Result run_head(const Tensor& logits, const Tensor* out, const Tensor& ids, const RowTensors& rows,
                const Program<double>& program, double scale, double cap) {
  UNIVG_CHECK(logits.is_cuda() && logits.dim() == 2, "grpo_head: logits: expected a CUDA tensor [N, V]");
  check_given(program, rows);
  UNIVG_CHECK(program.rows_are_alone(), "grpo_head: expected a program whose rows do not depend on each other; ",
              "for others use backend='triton'");
  switch (logits.scalar_type()) {
    case ScalarType::Float: return run<float>(logits, out, ids, rows, program, scale, cap);
    case ScalarType::BFloat16: return run<bf16>(logits, out, ids, rows, program, scale, cap);
    case ScalarType::Half: return run<fp16>(logits, out, ids, rows, program, scale, cap);
    default: break;
  }
  STD_TORCH_CHECK(false, "grpo_head: logits: expected float32, bfloat16 or float16 on CUDA, got ",
                  torch::headeronly::toString(logits.scalar_type()));
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> grpo_head(const Tensor& logits, const Tensor& token_ids,
                                                             UNIVG_ROW_PARAMETERS, UNIVG_PROGRAM_PARAMETERS,
                                                             double scale, double cap, bool with_grad) {
  Tensor grad = with_grad ? torch::stable::new_empty(logits, logits.sizes()) : make<float>(logits, {0});
  auto r = run_head(logits, with_grad ? &grad : nullptr, token_ids, {UNIVG_ROW_ARGUMENTS},
                    parse_program(UNIVG_PROGRAM_ARGUMENTS), scale, cap);
  return {r.loss, r.metrics, r.logp, r.active, grad};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> grpo_head_(const Tensor& logits, const Tensor& token_ids,
                                                      UNIVG_ROW_PARAMETERS, UNIVG_PROGRAM_PARAMETERS, double scale,
                                                      double cap) {
  auto r =
      run_head(logits, &logits, token_ids, {UNIVG_ROW_ARGUMENTS}, parse_program(UNIVG_PROGRAM_ARGUMENTS), scale, cap);
  return {r.loss, r.metrics, r.logp, r.active};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(univg_kernels, CUDA, m) {
  m.impl("grpo_head", TORCH_BOX(&grpo_head));
  m.impl("grpo_head_", TORCH_BOX(&grpo_head_));
}

}  // namespace univg::gpu
