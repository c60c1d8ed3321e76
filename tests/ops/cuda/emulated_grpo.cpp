// The kernels of csrc/cuda in the emulated device, and the index arithmetic walked, as C functions for ctypes.
#include "../../../csrc/cuda/reduce_records.cuh"

using namespace univg;
using namespace univg::gpu;

struct Call {
  int64_t rows, stride, gradient_stride, logits_items;  // logits_items: of the whole buffer that reads are counted in
  int32_t columns, ranks, threads, dtype;               // dtype: 0 fp32, 1 bf16, 2 fp16
  int32_t loss, level, kl, importance, flags[5];
  uint32_t seed;
  float scale, knee;
  float scalars[num_scalars];
  void *logits, *gradient, *buffer;
  const int64_t* ids;
  const float* inputs[kInputs];
  float *logp, *records;
  bool* active;
  uint8_t* reads;
};

template <class T, bool kCap>
void run(const Call& c) {
  GrpoRows<T> g{};
  g.logits = static_cast<const T*>(c.logits), g.gradient = static_cast<T*>(c.gradient);
  g.rows = c.rows, g.stride = c.stride, g.gradient_stride = c.gradient_stride, g.columns = c.columns;
  g.ids = c.ids, g.scale = c.scale, g.knee = c.knee;
  g.inputs = {c.inputs[0], c.inputs[1], c.inputs[2], c.inputs[3], c.inputs[4],
              c.inputs[5], c.inputs[6], c.inputs[7], c.inputs[8]};
  g.program = {static_cast<LossType>(c.loss),
               static_cast<Level>(c.level),
               static_cast<KL>(c.kl),
               static_cast<Importance>(c.importance),
               c.flags[0] != 0,
               c.flags[1] != 0,
               c.flags[2] != 0,
               c.flags[3] != 0,
               c.flags[4] != 0,
               {}};
  std::memcpy(g.program.scalars, c.scalars, sizeof c.scalars);
  g.logp = c.logp, g.active = c.active, g.records = c.records;
  auto& watched = machine.watched;
  watched.begin = static_cast<char*>(c.buffer), watched.item = sizeof(T);
  watched.end = watched.begin + c.logits_items * sizeof(T);
  watched.reads.assign(c.logits_items, 0);
  machine.kernel = [&] { grpo_row<T, kCap>(g); };
  const int vectors = divide_up(c.columns / kColumns<T>, c.ranks);
  std::vector<emulated::Fiber> fibers(c.ranks * c.threads);
  for (int64_t t = 0; t < c.rows; ++t)
    emulated::run_cluster(t, c.ranks, c.threads, sizeof(Shared) + vectors * kVectorBytes, c.seed + t, fibers);
  std::memcpy(c.reads, watched.reads.data(), c.logits_items);
}

template <class T>
void run(const Call& c) {
  return c.knee > 0 ? run<T, true>(c) : run<T, false>(c);
}

extern "C" void emulate_grpo(const Call* c) {
  return c->dtype == 0 ? run<float>(*c) : c->dtype == 1 ? run<bf16>(*c) : run<fp16>(*c);
}

extern "C" void emulate_reduction(const float* records, int64_t rows, float* loss, float* metrics) {
  constexpr int kThreads = 64;
  std::vector<emulated::Fiber> fibers(kThreads);
  machine.kernel = [&] { reduce_records(records, rows, loss, metrics); };
  for (int i = 0; i < kSums + kMaxima; ++i) emulated::run_cluster(i, 1, kThreads, kThreads * sizeof(double), i, fibers);
}

// Walks every column of a row at the address `row`: by the loops of the kernel, then by Place. 0, or the column at
// fault.
template <class T>
int walk(uintptr_t address, int columns, int ranks, int threads) {
  const RowParts<T> parts(reinterpret_cast<const T*>(address), columns);
  std::vector<int> seen(columns, 0), thread_of(columns, -1), rank_of(columns, -1);
  const auto visit = [&](int column, int rank, int thread) {
    if (column < 0 || column >= columns) return false;
    ++seen[column], rank_of[column] = rank, thread_of[column] = thread;
    return true;
  };
  if (parts.edges() > kMostEdges<T> || parts.vectors > columns / kColumns<T>) return -1;
  for (int rank = 0; rank < ranks; ++rank) {
    const Slice slice(parts.vectors, rank, ranks);
    if (slice.size > divide_up(columns / kColumns<T>, ranks)) return -2;  // beyond its shared memory
    for (int t = 0; t < threads; ++t)
      for (int v = t; v < slice.size; v += threads) {
        const int first = parts.column_of_vector(slice.begin + v);
        if ((address + first * sizeof(T)) % kVectorBytes) return -3;
        for (int j = 0; j < kColumns<T>; ++j)
          if (!visit(first + j, rank, t)) return -4;
      }
  }
  for (int e = 0; e < parts.edges(); ++e)
    if (!visit(parts.column_of_edge(e), 0, e)) return -5;
  for (int column = 0; column < columns; ++column) {
    if (seen[column] != 1) return column + 1;
    for (int rank = 0; rank < ranks; ++rank) {
      const Slice slice(parts.vectors, rank, ranks);
      const Place p = Place::of(column, parts, slice, rank, threads);
      if (p.thread != (rank == rank_of[column] ? thread_of[column] : -1)) return column + 1;
      if (p.vector >= 0 && parts.column_of_vector(slice.begin + p.vector) + p.offset != column) return column + 1;
      if (p.edge >= 0 && parts.column_of_edge(p.edge) != column) return column + 1;
    }
  }
  return 0;
}

extern "C" int walk_row(int bytes, uint64_t address, int columns, int ranks, int threads) {
  return bytes == 4 ? walk<float>(address, columns, ranks, threads) : walk<bf16>(address, columns, ranks, threads);
}

extern "C" void plan(int vectors, int most_bytes, int* out) {
  const Plan p = plan_rows(vectors, most_bytes);
  out[0] = p.ranks, out[1] = p.slice_bytes, out[2] = p.threads;
}
