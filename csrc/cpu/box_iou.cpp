// Overlap of boxes (x1, y1, x2, y2): element by element, all with all, or all with all within segments.
#include "../box_overlap.h"

#include <algorithm>

#include "../common.h"

// The loops become vector code for three instruction sets; the best one is chosen when the library is loaded.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__linux__)
#define UNIVG_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define UNIVG_CLONES
#endif

namespace univg {
namespace {

constexpr int64_t kGrain = 1 << 18;  // pairs that are worth a thread: half a millisecond

// Of n boxes `a` with n boxes `b`.
template <class real, bool giou, bool univg_r1>
UNIVG_CLONES void values(const real* __restrict a, const real* __restrict b, int64_t n, real* __restrict out) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) out[i] = static_cast<real>(Pair<giou, univg_r1>(a + 4 * i, b + 4 * i).value());
}

// Of one box `a` with n boxes `b`.
template <class real, bool giou, bool univg_r1>
UNIVG_CLONES void values_of_one(const real* a, const real* __restrict b, int64_t n, real* __restrict out) {
  const real one[4] = {a[0], a[1], a[2], a[3]};
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) out[i] = static_cast<real>(Pair<giou, univg_r1>(one, b + 4 * i).value());
}

// Gradients by `a` of n pairs.
template <class real, bool giou, bool univg_r1>
UNIVG_CLONES void gradients(const real* __restrict upstream, const real* __restrict a, const real* __restrict b,
                            int64_t n, real* __restrict out) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i)
    Pair<giou, univg_r1>(a + 4 * i, b + 4 * i).gradient(upstream[i], out + 4 * i);
}

// Gradient by one box `a` that meets n boxes `b`; pair i has upstream[i·step].
template <class real, bool giou, bool univg_r1>
UNIVG_CLONES void summed(const real* __restrict upstream, int64_t step, const real* a, const real* __restrict b,
                         int64_t n, real* __restrict out) {
  const real one[4] = {a[0], a[1], a[2], a[3]};
  double x1 = 0, y1 = 0, x2 = 0, y2 = 0;
#pragma omp simd reduction(+ : x1, y1, x2, y2)
  for (int64_t i = 0; i < n; ++i) {
    double part[4];
    Pair<giou, univg_r1>(one, b + 4 * i).gradient(upstream[i * step], part);
    x1 += part[0], y1 += part[1], x2 += part[2], y2 += part[3];
  }
  out[0] = static_cast<real>(x1), out[1] = static_cast<real>(y1), out[2] = static_cast<real>(x2), out[3] = static_cast<real>(y2);
}

template <class F>
auto dispatch(const Tensor& boxes, bool giou, bool univg_r1, F&& f) {
  UNIVG_CHECK(!(giou && univg_r1), "box_iou: giou knows no univg_r1");
  return dispatch_float(boxes, "box_iou", [&](auto tag) {
    using real = acc_type<decltype(tag)>;
    using no = std::false_type;
    using yes = std::true_type;
    return giou ? f(real{}, yes{}, no{}) : (univg_r1 ? f(real{}, no{}, yes{}) : f(real{}, no{}, no{}));
  });
}

int64_t grain(int64_t columns) { return std::max<int64_t>(1, kGrain / std::max<int64_t>(columns, 1)); }

template <class real>
const real* boxes_of(const Tensor& boxes, const char* name) {
  UNIVG_CHECK(boxes.dim() == 2 && boxes.size(1) == 4, name, ": expected [n, 4]");
  return data<real>(boxes, boxes.size(0) * 4, name);
}

Tensor box_iou(const Tensor& boxes1, const Tensor& boxes2, bool pairwise, bool giou, bool univg_r1) {
  return dispatch(boxes1, giou, univg_r1, [&](auto tag, auto is_giou, auto is_r1) {
    using real = decltype(tag);
    const real *a = boxes_of<real>(boxes1, "boxes1"), *b = boxes_of<real>(boxes2, "boxes2");
    const int64_t n = boxes1.size(0), m = boxes2.size(0);
    UNIVG_CHECK(pairwise || n == m, "boxes2: expected ", n, " boxes like boxes1, got ", m);
    Tensor out = pairwise ? make<real>(boxes1, {n, m}) : make<real>(boxes1, {n});
    auto* o = static_cast<real*>(out.data_ptr());
    constexpr bool g = decltype(is_giou)::value, r = decltype(is_r1)::value;
    torch::stable::parallel_for(0, n, grain(pairwise ? m : 1), [&](int64_t begin, int64_t end) {
      if (!pairwise) return values<real, g, r>(a + 4 * begin, b + 4 * begin, end - begin, o + begin);
      for (int64_t i = begin; i < end; ++i) values_of_one<real, g, r>(a + 4 * i, b, m, o + i * m);
    });
    return out;
  });
}

std::tuple<Tensor, Tensor> box_iou_backward(const Tensor& grad, const Tensor& boxes1, const Tensor& boxes2,
                                            bool pairwise, bool giou, bool univg_r1) {
  return dispatch(boxes1, giou, univg_r1, [&](auto tag, auto is_giou, auto is_r1) {
    using real = decltype(tag);
    const real *a = boxes_of<real>(boxes1, "boxes1"), *b = boxes_of<real>(boxes2, "boxes2");
    const int64_t n = boxes1.size(0), m = boxes2.size(0);
    UNIVG_CHECK(pairwise || n == m, "boxes2: expected ", n, " boxes like boxes1, got ", m);
    const real* up = data<real>(grad, pairwise ? n * m : n, "grad");
    Tensor grad1 = make<real>(boxes1, {n, 4}), grad2 = make<real>(boxes2, {m, 4});
    auto *g1 = static_cast<real*>(grad1.data_ptr()), *g2 = static_cast<real*>(grad2.data_ptr());
    constexpr bool g = decltype(is_giou)::value, r = decltype(is_r1)::value;
    torch::stable::parallel_for(0, n, grain(pairwise ? m : 1), [&](int64_t begin, int64_t end) {
      if (pairwise) {
        for (int64_t i = begin; i < end; ++i) summed<real, g, r>(up + i * m, 1, a + 4 * i, b, m, g1 + 4 * i);
      } else {
        gradients<real, g, r>(up + begin, a + 4 * begin, b + 4 * begin, end - begin, g1 + 4 * begin);
        gradients<real, g, r>(up + begin, b + 4 * begin, a + 4 * begin, end - begin, g2 + 4 * begin);
      }
    });
    if (pairwise)
      torch::stable::parallel_for(0, m, grain(n), [&](int64_t begin, int64_t end) {
        for (int64_t j = begin; j < end; ++j) summed<real, g, r>(up + j, m, b + 4 * j, a, n, g2 + 4 * j);
      });
    return std::make_tuple(grad1, grad2);
  });
}

// Calls f(segment's first box of each side, their counts, the place of its first pair) for every segment.
template <class F>
void for_segments(const Tensor& first, const Tensor& second, int64_t n, int64_t m, int64_t pairs, F&& f) {
  const int64_t count = first.numel() - 1;
  UNIVG_CHECK(count >= 0, "offsets1: expected at least one offset");
  const int64_t *c1 = data<int64_t>(first, count + 1, "offsets1"), *c2 = data<int64_t>(second, count + 1, "offsets2");
  UNIVG_CHECK(c1[0] == 0 && c2[0] == 0 && c1[count] == n && c2[count] == m, "offsets: expected 0 to ", n, " and ", m);
  int64_t all = 0;
  for (int64_t s = 0; s < count; ++s) {
    UNIVG_CHECK(c1[s] <= c1[s + 1] && c2[s] <= c2[s + 1] && c1[s + 1] <= n && c2[s + 1] <= m,
                "offsets: expected them never to fall");
    all += (c1[s + 1] - c1[s]) * (c2[s + 1] - c2[s]);
  }
  UNIVG_CHECK(all == pairs, "box_iou_ragged: expected ", all, " pairs, got ", pairs);
  for (int64_t s = 0, place = 0; s < count; ++s) {
    f(c1[s], c2[s], c1[s + 1] - c1[s], c2[s + 1] - c2[s], place);
    place += (c1[s + 1] - c1[s]) * (c2[s + 1] - c2[s]);
  }
}

Tensor box_iou_ragged(const Tensor& boxes1, const Tensor& boxes2, const Tensor& first, const Tensor& second,
                      int64_t pairs, bool giou, bool univg_r1) {
  return dispatch(boxes1, giou, univg_r1, [&](auto tag, auto is_giou, auto is_r1) {
    using real = decltype(tag);
    const real *a = boxes_of<real>(boxes1, "boxes1"), *b = boxes_of<real>(boxes2, "boxes2");
    UNIVG_CHECK(pairs >= 0, "pairs: expected a count, got ", pairs);
    // Segment lengths are proved before memory is asked for by their product.
    for_segments(first, second, boxes1.size(0), boxes2.size(0), pairs, [](auto...) {});
    Tensor out = make<real>(boxes1, {pairs});
    auto* o = static_cast<real*>(out.data_ptr());
    constexpr auto run = values_of_one<real, decltype(is_giou)::value, decltype(is_r1)::value>;
    for_segments(first, second, boxes1.size(0), boxes2.size(0), pairs,
                 [&](int64_t at1, int64_t at2, int64_t n, int64_t m, int64_t place) {
                   for (int64_t i = 0; i < n; ++i)
                     run(a + 4 * (at1 + i), b + 4 * at2, m, o + place + i * m);
                 });
    return out;
  });
}

std::tuple<Tensor, Tensor> box_iou_ragged_backward(const Tensor& grad, const Tensor& boxes1, const Tensor& boxes2,
                                                   const Tensor& first, const Tensor& second, bool giou,
                                                   bool univg_r1) {
  return dispatch(boxes1, giou, univg_r1, [&](auto tag, auto is_giou, auto is_r1) {
    using real = decltype(tag);
    const real *a = boxes_of<real>(boxes1, "boxes1"), *b = boxes_of<real>(boxes2, "boxes2");
    const real* up = data<real>(grad, grad.numel(), "grad");
    Tensor grad1 = make<real>(boxes1, {boxes1.size(0), 4}), grad2 = make<real>(boxes2, {boxes2.size(0), 4});
    auto *g1 = static_cast<real*>(grad1.data_ptr()), *g2 = static_cast<real*>(grad2.data_ptr());
    constexpr auto run = summed<real, decltype(is_giou)::value, decltype(is_r1)::value>;
    for_segments(first, second, boxes1.size(0), boxes2.size(0), grad.numel(),
                 [&](int64_t at1, int64_t at2, int64_t n, int64_t m, int64_t place) {
                   for (int64_t i = 0; i < n; ++i)
                     run(up + place + i * m, 1, a + 4 * (at1 + i), b + 4 * at2, m, g1 + 4 * (at1 + i));
                   for (int64_t j = 0; j < m; ++j)
                     run(up + place + j, m, b + 4 * (at2 + j), a + 4 * at1, n, g2 + 4 * (at2 + j));
                 });
    return std::make_tuple(grad1, grad2);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(univg_kernels, CPU, m) {
  m.impl("box_iou", TORCH_BOX(&box_iou));
  m.impl("box_iou_backward", TORCH_BOX(&box_iou_backward));
  m.impl("box_iou_ragged", TORCH_BOX(&box_iou_ragged));
  m.impl("box_iou_ragged_backward", TORCH_BOX(&box_iou_ragged_backward));
}

}  // namespace univg
