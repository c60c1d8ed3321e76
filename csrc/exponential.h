// e^x and e^x - 1 in straight-line fp32 code, which the compiler puts into loops and makes vector code of; fp64, and all
// on a GPU, as the C library has them. No torch.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "row_types.h"

namespace univg {

#if defined(__CUDACC__)
template <class real>
UNIVG_HD real exp_of(real x) {
  return std::exp(x);
}
template <class real>
UNIVG_HD real expm1_of(real x) {
  return std::expm1(x);
}
#else
#if defined(__GNUC__)
#define UNIVG_INLINE static inline __attribute__((always_inline))
#else
#define UNIVG_INLINE static inline
#endif

// x = n·ln2 + r, |r| <= ln2/2, for |x| < 2^20.
struct Reduced {
  float r, shifted;  // the last bits of `shifted` are n

  int32_t n() const {
    int32_t bits;
    std::memcpy(&bits, &shifted, 4);
    return bits - 0x4b400000;
  }
};
UNIVG_INLINE Reduced reduced(float x) {
  const float shifted = x * 1.44269504f + 12582912.0f;  // the addition rounds to an integer
  const float n = shifted - 12582912.0f;
  return {(x - n * 0.693359375f) + n * 2.12194440e-4f, shifted};
}
UNIVG_INLINE float power_of_two(int32_t n) {  // -126 <= n <= 127
  const uint32_t bits = static_cast<uint32_t>(n + 127) << 23;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
// (e^r - 1 - r)/r²
UNIVG_INLINE float exp_tail(float r) {
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  return p * r + 5.0000001201e-1f;
}

UNIVG_INLINE double exp_nonpositive(double x) { return std::exp(x); }
// e^x for x <= 0 (and a little above): error below 2 ulp; 0 below the normal range.
UNIVG_INLINE float exp_nonpositive(float x) {
  const Reduced x2 = reduced(x < -87.0f ? -87.0f : x);
  const float p = exp_tail(x2.r) * (x2.r * x2.r) + x2.r + 1.0f;
  return x < -87.0f ? 0.0f : p * power_of_two(x2.n());
}

// e^x for all x: error below 2 ulp; 0 below the normal range, infinite above the largest number, NaN of NaN.
UNIVG_INLINE double exp_of(double x) { return std::exp(x); }
UNIVG_INLINE float exp_of(float x) {
  const float low = x < -87.0f ? -87.0f : x;
  const Reduced x2 = reduced(low > 89.0f ? 89.0f : low);
  const float p = exp_tail(x2.r) * (x2.r * x2.r) + x2.r + 1.0f;
  return x < -87.0f ? 0.0f : p * power_of_two(x2.n() - 1) * 2.0f;  // 2^128 is no number, 2^127·p·2 may be one
}

// e^x - 1, for small x exact in its last digits, too.
UNIVG_INLINE double expm1_of(double x) { return std::expm1(x); }
UNIVG_INLINE float expm1_of(float x) {
  const float low = x < -20.0f ? -20.0f : x;
  const Reduced x2 = reduced(low > 89.0f ? 89.0f : low);
  const float half = power_of_two(x2.n() - 1), t = exp_tail(x2.r) * (x2.r * x2.r) + x2.r;
  return (half * t + (half - 0.5f)) * 2.0f;
}
#endif

}  // namespace univg
