// The names of csrc/cuda/device.cuh on the CPU: a cluster whose threads are fibers of one process, so that the kernels
// themselves run without a GPU. Stricter than the hardware where it can be: an asynchronous copy lands only when its
// group is waited for, shared memory begins as NaN, a barrier that cannot open is reported, and every read of the
// watched memory is counted.
#pragma once
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <vector>

#define UNIVG_DEVICE inline

struct float4 {
  float x, y, z, w;
};

namespace univg::gpu {

struct alignas(16) Vector {
  uint32_t x, y, z, w;
};

namespace emulated {

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "emulated device: %s\n", what);
  std::abort();
}

struct Barrier {
  int arrived = 0, members = 0;
  int64_t opened = 0;  // how often
  void arrive() {
    if (++arrived == members) arrived = 0, ++opened;
  }
};

struct Warp {
  Barrier barrier;
  float slots[32];
};

struct Block {
  Barrier barrier;
  std::vector<Warp> warps;
  std::vector<unsigned char> memory;
  unsigned char* shared;
};

struct Copy {
  void* to;
  const void* from;
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  Block* block;
  int rank, thread;
  int64_t cluster_phase;  // the barrier's count of openings when this fiber arrived
  bool arrived, waited;   // at the cluster's barrier
  std::deque<std::vector<Copy>> groups;
  std::vector<Copy> open_group;
  bool done;
};

struct Watched {
  const char *begin = nullptr, *end = nullptr;
  int item = 1;
  std::vector<uint8_t> reads;  // of each element
  void read(const void* p, size_t bytes) {
    const char* at = static_cast<const char*>(p);
    for (const char* c = at; c < at + bytes; c += item)
      if (c >= begin && c < end) ++reads[(c - begin) / item];
  }
};

struct Machine {
  ucontext_t scheduler;
  Fiber* current = nullptr;
  Barrier cluster;
  std::vector<Block> blocks;
  int ranks = 0, threads = 0;
  int64_t index = 0, steps = 0;
  Watched watched;
  std::function<void()> kernel;
};
inline Machine machine;

inline void wait_until(const std::function<bool()>& open) {
  while (!open()) swapcontext(&machine.current->context, &machine.scheduler);
  ++machine.steps;
}
inline void meet(Barrier& b) {
  const int64_t before = b.opened;
  b.arrive();
  wait_until([&] { return b.opened != before; });
}
inline void enter() {
  machine.kernel();
  machine.current->done = true;
  ++machine.steps;
}

// Run `kernel` in every thread of one cluster. Fibers take turns at barriers, in an order that `seed` varies.
inline void run_cluster(int64_t index, int ranks, int threads, size_t shared_bytes, unsigned seed,
                        std::vector<Fiber>& fibers) {
  machine.index = index, machine.ranks = ranks, machine.threads = threads;
  machine.cluster = {0, ranks * threads, 0};
  machine.blocks.assign(ranks, {});
  for (Block& b : machine.blocks) {
    b.barrier.members = threads;
    b.warps.assign(threads / 32, {});
    for (Warp& w : b.warps) w.barrier.members = 32;
    b.memory.assign(shared_bytes + 16, 0xff);
    b.shared = b.memory.data() + (16 - reinterpret_cast<uintptr_t>(b.memory.data()) % 16) % 16;
  }
  constexpr size_t kStack = 64 << 10;
  const int count = ranks * threads;
  if (static_cast<int>(fibers.size()) < count) fibers.resize(count);
  for (int i = 0; i < count; ++i) {
    Fiber& f = fibers[i];
    if (!f.stack) f.stack = std::make_unique<char[]>(kStack);
    f.block = &machine.blocks[i / threads], f.rank = i / threads, f.thread = i % threads;
    f.groups.clear(), f.open_group.clear(), f.done = f.arrived = f.waited = false;
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = f.stack.get(), f.context.uc_stack.ss_size = kStack;
    f.context.uc_link = &machine.scheduler;
    makecontext(&f.context, enter, 0);
  }
  for (int left = count; left > 0;) {
    const int64_t before = machine.steps;
    seed = seed * 1664525u + 1013904223u;
    const int first = static_cast<int>(seed >> 8) % count, turn = seed & 1u << 7 ? 1 : count - 1;
    for (int k = 0, i = first; k < count; ++k, i = (i + turn) % count) {
      Fiber& f = fibers[i];
      if (f.done) continue;
      machine.current = &f;
      swapcontext(&machine.scheduler, &f.context);
      left -= f.done;
    }
    if (left > 0 && machine.steps == before) fail("threads wait at a barrier that cannot open");
  }
}

}  // namespace emulated

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
