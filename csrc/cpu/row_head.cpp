#include "row_head.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "../exponential.h"
#include "instruction_sets.h"

namespace univg {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

constexpr int64_t kBlock = 1024;  // columns that stay in L1 between the maximum and the exponentials

// Straight-line conversions: the loops below become vector code on any instruction set.
UNIVG_INLINE float load(const float* p) { return *p; }
UNIVG_INLINE double load(const double* p) { return *p; }
UNIVG_INLINE float load(const Half* p) { return static_cast<float>(*p); }
UNIVG_INLINE float load(const BFloat16* p) {
  const uint32_t bits = static_cast<uint32_t>(p->x) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
UNIVG_INLINE void store(float* p, float v) { *p = v; }
UNIVG_INLINE void store(double* p, double v) { *p = v; }
UNIVG_INLINE void store(Half* p, float v) { *p = Half(v); }
UNIVG_INLINE void store(BFloat16* p, float v) {  // round to nearest even
  uint32_t bits;
  std::memcpy(&bits, &v, 4);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  p->x = static_cast<uint16_t>(v == v ? rounded : 0x7fc0u);
}

UNIVG_INLINE double tanh_of(double y) { return std::tanh(y); }
// Near 0 an odd polynomial (fitted for relative error: below 1e-8), elsewhere (1 - e^-2|y|) / (1 + e^-2|y|).
UNIVG_INLINE float tanh_of(float y) {
  const float s = y * y, size = y < 0 ? -y : y;
  float p = -6.282473252502843e-3f;
  p = p * s + 2.1077758359832322e-2f;
  p = p * s - 5.385385796128682e-2f;
  p = p * s + 1.3332601686171675e-1f;
  p = p * s - 3.333331804573651e-1f;
  const float e = exp_nonpositive(-2.0f * size), far = (1.0f - e) / (1.0f + e);
  return size < 0.55f ? y + y * s * p : (y < 0 ? -far : far);
}

template <bool capped, class acc_t>
UNIVG_INLINE acc_t squashed(acc_t z, Squash<acc_t> q) {
  if constexpr (capped) return q.cap * tanh_of(z * q.inner);
  else return z * q.scale;
}

template <class acc_t>
constexpr acc_t kLowest = std::numeric_limits<acc_t>::lowest();  // stands for -inf where 0·(-inf) must be 0

template <bool capped, class scalar_t, class acc_t>
UNIVG_INLINE RowStats<acc_t> stats(const scalar_t* z, int64_t vocab, int64_t id, Squash<acc_t> q) {
  constexpr acc_t inf = std::numeric_limits<acc_t>::infinity();
  acc_t maximum = -inf;
  double sum = 0, weighted = 0;  // of e^(x - maximum), and of e^(x - maximum)·(x - maximum)
  acc_t x[kBlock];
  for (int64_t start = 0; start < vocab; start += kBlock) {
    const int64_t n = std::min(kBlock, vocab - start);
    acc_t block_max = -inf;
#pragma omp simd reduction(max : block_max)
    for (int64_t j = 0; j < n; ++j) {
      x[j] = squashed<capped, acc_t>(load(z + start + j), q);
      block_max = x[j] > block_max ? x[j] : block_max;
    }
    if (block_max > maximum) {
      if (maximum != -inf) {
        const double rise = double(block_max) - double(maximum), shrink = std::exp(-rise);
        weighted = shrink * (weighted - rise * sum);
        sum *= shrink;
      }
      maximum = block_max;
    }
    const acc_t base = maximum == -inf ? 0 : maximum;
    acc_t part = 0, weighted_part = 0;
#pragma omp simd reduction(+ : part, weighted_part)
    for (int64_t j = 0; j < n; ++j) {
      const acc_t d = x[j] - base, e = exp_nonpositive(d);
      part += e;
      weighted_part += e * (d > kLowest<acc_t> ? d : kLowest<acc_t>);
    }
    sum += part;
    weighted += weighted_part;
  }
  const double log_sum = std::log(sum);
  // Rounded like `maximum`, so that a row of one column has log p = 0; the compiler may round scalar code otherwise.
  const acc_t x_id = std::min(squashed<capped, acc_t>(load(z + id), q), maximum);
  return {static_cast<acc_t>(double(x_id) - double(maximum) - log_sum), static_cast<acc_t>(log_sum - weighted / sum),
          double(maximum) + log_sum};
}

template <bool capped, class scalar_t, class acc_t>
UNIVG_INLINE void grad(scalar_t* out, const scalar_t* z, int64_t vocab, int64_t id, Squash<acc_t> q, double lse,
                       acc_t entropy, acc_t a, acc_t b) {
  const acc_t x_id = squashed<capped, acc_t>(load(z + id), q);  // before `out`, which may be z, is written
  // lse in two parts: x - whole is exact where it matters.
  const acc_t whole = static_cast<acc_t>(lse), rest = static_cast<acc_t>(lse - double(whole));
  const acc_t log_p_id = static_cast<acc_t>(double(x_id) - lse), sa = a * q.scale, sb = b * q.scale;
  // dx/dz = scale·flat(x)
  const acc_t inverse_cap = capped ? 1 / q.cap : 0;
  const auto flat = [inverse_cap](acc_t x) -> acc_t {
    return capped ? 1 - (x * inverse_cap) * (x * inverse_cap) : acc_t(1);
  };
  if (b == 0) {
#pragma omp simd
    for (int64_t j = 0; j < vocab; ++j) {
      const acc_t x = squashed<capped, acc_t>(load(z + j), q), g = -sa * exp_nonpositive((x - whole) - rest);
      store(out + j, capped ? g * flat(x) : g);
    }
  } else {
#pragma omp simd
    for (int64_t j = 0; j < vocab; ++j) {
      const acc_t x = squashed<capped, acc_t>(load(z + j), q), d = (x - whole) - rest;
      const acc_t log_p = d > kLowest<acc_t> ? d : kLowest<acc_t>;
      const acc_t g = -exp_nonpositive(d) * (sa + sb * (log_p + entropy));
      store(out + j, capped ? g * flat(x) : g);
    }
  }
  const acc_t p = std::exp(log_p_id);
  const acc_t bonus = b == 0 ? 0 : sb * p * (std::max(log_p_id, kLowest<acc_t>) + entropy);
  store(out + id, (-sa * std::expm1(log_p_id) - bonus) * flat(x_id));
}

}  // namespace

#if defined(__x86_64__) && defined(__GNUC__)
#define UNIVG_DEFINE(result, name, body, params, args)           \
  UNIVG_AVX512 result name##_avx512 params { return body args; } \
  UNIVG_AVX2 result name##_avx2 params { return body args; }     \
  result name##_base params { return body args; }                \
  result name params {                                           \
    switch (cpu_level()) {                                       \
      case 2: return name##_avx512 args;                         \
      case 1: return name##_avx2 args;                           \
      default: return name##_base args;                          \
    }                                                            \
  }
#else
#define UNIVG_DEFINE(result, name, body, params, args) \
  result name params { return body args; }
#endif

// Two instances of each function, so that logits without a cap pay nothing for it.
#define UNIVG_DEFINE_PAIR(result, name, body, params, args)                  \
  UNIVG_DEFINE(static result, name##_plain, body<false>, params, args)       \
  UNIVG_DEFINE(static result, name##_capped, body<true>, params, args)       \
  result name params {                                                       \
    return squash.cap == 0 ? name##_plain args : name##_capped args;         \
  }

#define UNIVG_DEFINE_ROW_HEAD(scalar_t, acc_t)                                                                \
  UNIVG_DEFINE_PAIR(RowStats<acc_t>, row_stats, stats,                                                        \
                    (const scalar_t* z, int64_t vocab, int64_t id, Squash<acc_t> squash),                     \
                    (z, vocab, id, squash))                                                                   \
  UNIVG_DEFINE_PAIR(void, row_grad, grad,                                                                     \
                    (scalar_t * out, const scalar_t* z, int64_t vocab, int64_t id, Squash<acc_t> squash,      \
                     double lse, acc_t entropy, acc_t a, acc_t b),                                             \
                    (out, z, vocab, id, squash, lse, entropy, a, b))

UNIVG_DEFINE_ROW_HEAD(double, double)
UNIVG_DEFINE_ROW_HEAD(float, float)
UNIVG_DEFINE_ROW_HEAD(BFloat16, float)
UNIVG_DEFINE_ROW_HEAD(Half, float)

}  // namespace univg
