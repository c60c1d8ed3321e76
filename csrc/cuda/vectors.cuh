// 16 bytes of fp32, bf16 or fp16 as floats, and back.
#pragma once
#include "device.cuh"
#include "row_slices.h"

namespace univg::gpu {

// Storage only. The kernels know nothing of torch.
struct bf16 {
  uint16_t bits;
};
struct fp16 {
  uint16_t bits;
};

UNIVG_DEVICE void unpack(Vector v, float (&x)[4], float) {
  x[0] = bits_to_float(v.x), x[1] = bits_to_float(v.y), x[2] = bits_to_float(v.z), x[3] = bits_to_float(v.w);
}
UNIVG_DEVICE void unpack(Vector v, float (&x)[8], bf16) {
  const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) x[2 * i] = bf16_to_float(words[i]), x[2 * i + 1] = bf16_high_to_float(words[i]);
}
UNIVG_DEVICE void unpack(Vector v, float (&x)[8], fp16) {
  const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) x[2 * i] = fp16_to_float(words[i]), x[2 * i + 1] = fp16_to_float(words[i] >> 16);
}

UNIVG_DEVICE Vector pack(const float (&x)[4], float) {
  return {float_to_bits(x[0]), float_to_bits(x[1]), float_to_bits(x[2]), float_to_bits(x[3])};
}
UNIVG_DEVICE Vector pack(const float (&x)[8], bf16) {
  return {bf16_pair(x[0], x[1]), bf16_pair(x[2], x[3]), bf16_pair(x[4], x[5]), bf16_pair(x[6], x[7])};
}
UNIVG_DEVICE Vector pack(const float (&x)[8], fp16) {
  return {fp16_pair(x[0], x[1]), fp16_pair(x[2], x[3]), fp16_pair(x[4], x[5]), fp16_pair(x[6], x[7])};
}

UNIVG_DEVICE float to_float(float x) { return x; }
UNIVG_DEVICE float to_float(bf16 x) { return bf16_to_float(x.bits); }
UNIVG_DEVICE float to_float(fp16 x) { return fp16_to_float(x.bits); }
UNIVG_DEVICE float round_to(float x, float) { return x; }
UNIVG_DEVICE bf16 round_to(float x, bf16) { return {static_cast<uint16_t>(bf16_pair(x, 0.0f))}; }
UNIVG_DEVICE fp16 round_to(float x, fp16) { return {static_cast<uint16_t>(fp16_pair(x, 0.0f))}; }

}  // namespace univg::gpu
