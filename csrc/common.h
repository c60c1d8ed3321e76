// What every CPU op uses: the checks, the dtype switch, and typed pointers.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <optional>

namespace univg {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The doors in Python have checked what a user can get wrong; these guard the ops that are called without a door.
#define UNIVG_CHECK(condition, ...) STD_TORCH_CHECK(condition, __VA_ARGS__)

// The maths of fp64 runs in fp64, all else in fp32.
template <class scalar_t>
using acc_type = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;

template <class F>
auto dispatch_float(const Tensor& t, const char* name, F&& f) {
  switch (t.scalar_type()) {
    case ScalarType::Double: return f(double{});
    case ScalarType::Float: return f(float{});
    case ScalarType::BFloat16: return f(torch::headeronly::BFloat16{});
    case ScalarType::Half: return f(torch::headeronly::Half{});
    default: break;
  }
  STD_TORCH_CHECK(false, name, ": expected float64, float32, bfloat16 or float16, got ",
                  torch::headeronly::toString(t.scalar_type()));
}

template <class T>
constexpr ScalarType type_of() {
  if constexpr (std::is_same_v<T, double>) return ScalarType::Double;
  else if constexpr (std::is_same_v<T, float>) return ScalarType::Float;
  else if constexpr (std::is_same_v<T, int64_t>) return ScalarType::Long;
  else return ScalarType::Bool;
}

// Pointer to a contiguous CPU tensor of exactly `count` elements of T.
template <class T>
T* data(const Tensor& t, int64_t count, const char* name) {
  UNIVG_CHECK(t.is_cpu(), name, ": expected a CPU tensor");
  UNIVG_CHECK(t.scalar_type() == type_of<T>(), name, ": expected ", torch::headeronly::toString(type_of<T>()), ", got ",
              torch::headeronly::toString(t.scalar_type()));
  UNIVG_CHECK(t.is_contiguous() && t.numel() == count, name, ": expected ", count, " contiguous elements, got ",
              t.numel());
  return static_cast<T*>(t.data_ptr());
}

template <class T>
T* data(const std::optional<Tensor>& t, int64_t count, const char* name) {
  return t ? data<T>(*t, count, name) : nullptr;
}

template <class T>
Tensor make(const Tensor& like, std::initializer_list<int64_t> shape) {
  return torch::stable::new_empty(like, {shape.begin(), shape.size()}, type_of<T>());
}

}  // namespace univg
