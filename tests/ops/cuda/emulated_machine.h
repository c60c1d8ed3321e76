// A cluster of CTAs whose threads are fibers of one process.
#pragma once
#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <functional>
#include <memory>
#include <vector>

namespace univg::gpu::emulated {

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
  constexpr size_t kStack = 32 << 10;
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

}  // namespace univg::gpu::emulated
