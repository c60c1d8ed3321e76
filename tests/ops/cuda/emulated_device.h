// The names of csrc/cuda/device.cuh on the CPU, so that the kernels themselves run without a GPU. Stricter than the
// hardware where it can be: an asynchronous copy lands only when its group is waited for, shared memory begins as NaN,
// a barrier that cannot open is reported, and every read of the watched memory is counted.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "emulated_machine.h"

#define UNIVG_DEVICE inline

struct float4 {
  float x, y, z, w;
};

namespace univg::gpu {

struct alignas(16) Vector {
  uint32_t x, y, z, w;
};

using emulated::machine;

UNIVG_DEVICE int thread() { return machine.current->thread; }
UNIVG_DEVICE int threads() { return machine.threads; }
UNIVG_DEVICE int cluster_rank() { return machine.current->rank; }
UNIVG_DEVICE int cluster_size() { return machine.ranks; }
UNIVG_DEVICE int64_t cluster_index() { return machine.index; }
UNIVG_DEVICE unsigned char* shared_memory() { return machine.current->block->shared; }

UNIVG_DEVICE void sync_block() { emulated::meet(machine.current->block->barrier); }
UNIVG_DEVICE void cluster_arrive() {
  if (machine.current->arrived) emulated::fail("a thread arrives twice without waiting");
  machine.current->arrived = true;
  machine.current->cluster_phase = machine.cluster.opened;
  machine.cluster.arrive();
}
UNIVG_DEVICE void cluster_begin() { cluster_arrive(); }
UNIVG_DEVICE void cluster_wait() {
  emulated::wait_until([] { return machine.cluster.opened != machine.current->cluster_phase; });
  machine.current->arrived = false, machine.current->waited = true;
}
UNIVG_DEVICE void store_cluster(float4* slot, int rank, float4 v) {
  if (!machine.current->waited) emulated::fail("a CTA is written to before it is known to have begun");
  const auto offset = reinterpret_cast<unsigned char*>(slot) - shared_memory();
  std::memcpy(machine.blocks[rank].shared + offset, &v, sizeof v);
}

UNIVG_DEVICE float shuffle_xor(float x, int mask) {
  emulated::Warp& w = machine.current->block->warps[thread() / 32];
  w.slots[thread() % 32] = x;
  emulated::meet(w.barrier);
  const float other = w.slots[thread() % 32 ^ mask];
  emulated::meet(w.barrier);
  return other;
}

UNIVG_DEVICE void copy_async(Vector* shared, const void* global) {
  if ((reinterpret_cast<uintptr_t>(global) | reinterpret_cast<uintptr_t>(shared)) % 16)
    emulated::fail("an asynchronous copy from or to an address that is no multiple of 16");
  machine.watched.read(global, 16);
  machine.current->open_group.push_back({shared, global});
}
UNIVG_DEVICE void commit_copies() {
  machine.current->groups.push_back(std::move(machine.current->open_group));
  machine.current->open_group.clear();
}
template <int kPending>
UNIVG_DEVICE void wait_copies() {
  auto& groups = machine.current->groups;
  for (; groups.size() > kPending; groups.pop_front())
    for (const emulated::Copy& c : groups.front()) std::memcpy(c.to, c.from, 16);
}

template <class T>
UNIVG_DEVICE T load_element(const T* p) {
  machine.watched.read(p, sizeof(T));
  return *p;
}
template <class T>
UNIVG_DEVICE void store_element(T* p, T v) {
  *p = v;
}
UNIVG_DEVICE void store_vector(void* p, Vector v) {
  if (reinterpret_cast<uintptr_t>(p) % 16) emulated::fail("16 bytes stored to an address that is no multiple of 16");
  std::memcpy(p, &v, 16);
}

UNIVG_DEVICE float exp2_fast(float x) {
  const float y = std::exp2(x);
  return y < 1.17549435e-38f ? 0.0f : y;
}
UNIVG_DEVICE float max_nan(float x, float y) { return x != x ? x : y != y ? y : x > y ? x : y; }

UNIVG_DEVICE float bits_to_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
UNIVG_DEVICE uint32_t float_to_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
UNIVG_DEVICE float bf16_to_float(uint32_t bits) { return bits_to_float(bits << 16); }
UNIVG_DEVICE float bf16_high_to_float(uint32_t word) { return bits_to_float(word & 0xffff0000u); }
UNIVG_DEVICE uint32_t bf16_bits(float x) {
  const uint32_t bits = float_to_bits(x);
  return x == x ? (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16 : 0x7fffu;
}
UNIVG_DEVICE uint32_t bf16_pair(float low, float high) { return bf16_bits(low) | bf16_bits(high) << 16; }
UNIVG_DEVICE float fp16_to_float(uint32_t bits) {
  const uint16_t half = static_cast<uint16_t>(bits);
  _Float16 x;
  std::memcpy(&x, &half, 2);
  return static_cast<float>(x);
}
UNIVG_DEVICE uint32_t fp16_bits(float x) {
  const _Float16 half = static_cast<_Float16>(x);
  uint16_t bits;
  std::memcpy(&bits, &half, 2);
  return bits;
}
UNIVG_DEVICE uint32_t fp16_pair(float low, float high) { return fp16_bits(low) | fp16_bits(high) << 16; }

}  // namespace univg::gpu
