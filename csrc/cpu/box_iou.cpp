// Overlap of boxes (x1, y1, x2, y2).
#include <algorithm>

#include "../common.h"

namespace univg {
namespace {

template <class acc_t>
acc_t overlap(const acc_t* a, const acc_t* b, bool giou, bool univg_r1) {
  const acc_t w = std::min(a[2], b[2]) - std::max(a[0], b[0]), h = std::min(a[3], b[3]) - std::max(a[1], b[1]);
  const acc_t least = univg_r1 ? 1 : 0;  // an overlap must be wider than this
  const acc_t inter = w > least && h > least ? w * h : 0;
  acc_t sides[4] = {a[2] - a[0], a[3] - a[1], b[2] - b[0], b[3] - b[1]};
  if (!univg_r1)
    for (acc_t& s : sides) s = std::max(s, acc_t(0));
  const acc_t all = sides[0] * sides[1] + sides[2] * sides[3] - inter;
  const acc_t iou = inter > 0 ? inter / all : 0;
  if (!giou) return iou;
  const acc_t hull = std::max(std::max(a[2], b[2]) - std::min(a[0], b[0]), acc_t(0)) *
                     std::max(std::max(a[3], b[3]) - std::min(a[1], b[1]), acc_t(0));
  return iou - (hull > 0 ? (hull - all) / hull : 0);
}

Tensor box_iou(const Tensor& boxes1, const Tensor& boxes2, bool pairwise, bool giou, bool univg_r1) {
  return dispatch_float(boxes1, "box_iou", [&](auto tag) {
    using acc_t = acc_type<decltype(tag)>;
    const int64_t n = boxes1.size(0), m = boxes2.size(0);
    const auto *a = data<acc_t>(boxes1, n * 4, "boxes1"), *b = data<acc_t>(boxes2, m * 4, "boxes2");
    UNIVG_CHECK(pairwise || n == m, "boxes2: expected ", n, " boxes like boxes1, got ", m);
    Tensor out = pairwise ? make<acc_t>(boxes1, {n, m}) : make<acc_t>(boxes1, {n});
    auto* o = static_cast<acc_t*>(out.data_ptr());
    const int64_t columns = pairwise ? m : 1;
    torch::stable::parallel_for(
        0, n, std::max<int64_t>(1, 16384 / std::max<int64_t>(columns, 1)), [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i)
            for (int64_t j = 0; j < columns; ++j)
              o[i * columns + j] = overlap(a + 4 * i, b + 4 * (pairwise ? j : i), giou, univg_r1);
        });
    return out;
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(univg_kernels, CPU, m) { m.impl("box_iou", TORCH_BOX(&box_iou)); }

}  // namespace univg
