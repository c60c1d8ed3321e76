// Which thread of which CTA of a cluster has which columns of a row: all of the index arithmetic of the CUDA kernels,
// compiled for the host as well, where a test walks every column.
#pragma once
#include <cstddef>
#include <cstdint>

#include "../row_program.h"

namespace univg::gpu {

constexpr int kVectorBytes = 16;

template <class T>
constexpr int kColumns = kVectorBytes / static_cast<int>(sizeof(T));  // of a vector

constexpr UNIVG_HD int divide_up(int a, int b) { return (a + b - 1) / b; }

// A row: the columns up to its first 16-byte boundary, whole vectors, the columns that are left. Those at the edges are
// at most kMostEdges; a row that begins at a boundary and ends at one has none.
template <class T>
struct RowParts {
  int columns, head, vectors;

  UNIVG_HD RowParts(const T* row, int columns_of_row) : columns(columns_of_row) {
    const int beyond = static_cast<int>(reinterpret_cast<uintptr_t>(row) % kVectorBytes / sizeof(T));
    head = beyond == 0 ? 0 : kColumns<T> - beyond;
    if (head > columns) head = columns;
    vectors = (columns - head) / kColumns<T>;
  }

  UNIVG_HD int edges() const { return columns - vectors * kColumns<T>; }
  UNIVG_HD int column_of_edge(int edge) const { return edge < head ? edge : edge + vectors * kColumns<T>; }
  UNIVG_HD int column_of_vector(int vector) const { return head + vector * kColumns<T>; }
};

template <class T>
constexpr int kMostEdges = 2 * kColumns<T> - 2;

// The vectors [begin, begin + size) of one CTA. Its thread t has the vectors begin + t, begin + t + threads, ...; the
// first threads of the first CTA have one edge each.
struct Slice {
  int begin, size;

  UNIVG_HD Slice(int vectors, int rank, int ranks) {
    const int share = divide_up(vectors, ranks), left = vectors - rank * share;
    begin = rank * share;
    size = left < 0 ? 0 : left < share ? left : share;
  }
};

// Where a CTA has a column, if it has it.
struct Place {
  int edge = -1;                // of this CTA
  int vector = -1, offset = 0;  // of this CTA's slice, and in the vector
  int thread = -1;

  template <class T>
  UNIVG_HD static Place of(int column, const RowParts<T>& parts, const Slice& slice, int rank, int threads) {
    Place p;
    const int inner = column - parts.head, vector = inner / kColumns<T> - slice.begin;
    if (inner < 0 || inner >= parts.vectors * kColumns<T>) {
      if (rank == 0) p.thread = p.edge = inner < 0 ? column : column - parts.vectors * kColumns<T>;
    } else if (vector >= 0 && vector < slice.size) {
      p.vector = vector;
      p.offset = inner % kColumns<T>;
      p.thread = vector % threads;
    }
    return p;
  }
};

// How a row is shared out.
struct Plan {
  int ranks;        // CTAs of a cluster; 0: the row does not fit on chip
  int slice_bytes;  // of shared memory for the columns of a CTA
  int threads;      // of a CTA
};

// Clusters of up to 8 CTAs are portable. A slice of at most 40 KB leaves room for five CTAs on a Hopper multiprocessor:
// while one waits for its cluster or stores its gradient, the others load.
constexpr int kMostRanks = 8, kGoodSlice = 40 << 10;

inline Plan plan_rows(int vectors, int most_bytes) {  // vectors: the most that a row can have
  int ranks = 1;
  while (ranks < kMostRanks && divide_up(vectors, ranks) > kGoodSlice / kVectorBytes) ranks *= 2;
  const int slice = divide_up(vectors, ranks);
  if (slice > most_bytes / kVectorBytes) return {0, 0, 0};
  return {ranks, slice * kVectorBytes, slice > kGoodSlice / kVectorBytes ? 512 : slice > 512 ? 256 : 128};
}

}  // namespace univg::gpu
