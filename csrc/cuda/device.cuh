// What the kernels ask of the machine, one function each: Hopper's instructions here, and in the tests the same names
// on the CPU (UNIVG_DEVICE_HEADER), so that the kernels themselves run there.
#pragma once
#include <cstdint>

#ifdef UNIVG_DEVICE_HEADER
#include UNIVG_DEVICE_HEADER
#else

#define UNIVG_DEVICE __device__ __forceinline__

namespace univg::gpu {

using Vector = uint4;  // 16 bytes

UNIVG_DEVICE int thread() { return static_cast<int>(threadIdx.x); }
UNIVG_DEVICE int threads() { return static_cast<int>(blockDim.x); }

UNIVG_DEVICE int cluster_rank() {
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return static_cast<int>(rank);
}
UNIVG_DEVICE int cluster_size() {
  uint32_t size;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return static_cast<int>(size);
}
// Not %clusterid: nvcc 13 makes that of blockIdx in fp32, which is wrong from 2^24 CTAs on.
UNIVG_DEVICE int64_t cluster_index() { return blockIdx.x / static_cast<unsigned>(cluster_size()); }

UNIVG_DEVICE unsigned char* shared_memory() {
  extern __shared__ __align__(16) unsigned char memory[];
  return memory;
}
UNIVG_DEVICE uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

UNIVG_DEVICE void sync_block() { __syncthreads(); }

// Every thread of the cluster arrives, then waits; what was stored before the one is seen after the other.
UNIVG_DEVICE void cluster_begin() { asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory"); }  // nothing stored
UNIVG_DEVICE void cluster_arrive() { asm volatile("barrier.cluster.arrive.release;" ::: "memory"); }
UNIVG_DEVICE void cluster_wait() { asm volatile("barrier.cluster.wait.acquire;" ::: "memory"); }

// Store to the place that `slot` is in this CTA's shared memory, in that of CTA `rank`.
UNIVG_DEVICE void store_cluster(float4* slot, int rank, float4 v) {
  uint32_t there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(shared_address(slot)), "r"(rank));
  asm volatile("st.shared::cluster.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(there), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w)
               : "memory");
}

UNIVG_DEVICE float shuffle_xor(float x, int mask) { return __shfl_xor_sync(~0u, x, mask); }

// 16 bytes from global to shared memory, past the registers and the L1 cache. A thread's copies are done for itself
// when at most kPending groups of those it committed are not.
UNIVG_DEVICE void copy_async(Vector* shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(global) : "memory");
}
UNIVG_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>
UNIVG_DEVICE void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Not the read-only path: other threads of the launch overwrite the row later.
template <class T>
UNIVG_DEVICE T load_element(const T* p) {
  return *p;
}
template <class T>
UNIVG_DEVICE void store_element(T* p, T v) {
  *p = v;
}
UNIVG_DEVICE void store_vector(void* p, Vector v) { *static_cast<Vector*>(p) = v; }

UNIVG_DEVICE float exp2_fast(float x) {  // 2 ulp; 0 below the normal range
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
UNIVG_DEVICE float max_nan(float x, float y) {  // NaN if one is
  float z;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(z) : "f"(x), "f"(y));
  return z;
}

UNIVG_DEVICE float bf16_to_float(uint32_t bits) { return __uint_as_float(bits << 16); }
UNIVG_DEVICE float bf16_high_to_float(uint32_t word) { return __uint_as_float(word & 0xffff0000u); }
UNIVG_DEVICE float fp16_to_float(uint32_t bits) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(static_cast<uint16_t>(bits)));
  return y;
}
// Two floats as one word, rounded to nearest even.
UNIVG_DEVICE uint32_t bf16_pair(float low, float high) {
  uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}
UNIVG_DEVICE uint32_t fp16_pair(float low, float high) {
  uint32_t word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}
UNIVG_DEVICE float bits_to_float(uint32_t bits) { return __uint_as_float(bits); }
UNIVG_DEVICE uint32_t float_to_bits(float x) { return __float_as_uint(x); }

}  // namespace univg::gpu
#endif
