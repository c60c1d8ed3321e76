// Overlap of two boxes (x1, y1, x2, y2) and its gradient by the first one: the formulas of box_iou/reference.py, for one
// pair, without branches. IoU and GIoU are symmetric: the gradient by the second box is this with the roles swapped.
#pragma once
#include <cmath>
#include <type_traits>

#include "row_types.h"  // UNIVG_HD

// Inlined wherever it stands: the loops over pairs must become vector code.
#if defined(__CUDACC__)
#define UNIVG_PAIR UNIVG_HD __forceinline__
#else
#define UNIVG_PAIR inline __attribute__((always_inline))
#endif

namespace univg {

// Coordinates beyond this could overflow as areas: such boxes, and boxes with NaN, overlap with nothing.
template <class real>
constexpr real kLargestCoordinate = std::is_same_v<real, double> ? real(0x1p510) : real(0x1p62f);

template <class real, bool giou, bool univg_r1>
struct Pair {
  bool known, counts;
  real width, height;            // of the overlap
  real side_x, side_y;           // of the first box, as its area takes them
  real hull_x, hull_y;           // of the smallest box around both
  real all, iou;                 // area of the union
  const real *a, *b;

  static UNIVG_PAIR real least(real x, real y) { return x < y ? x : y; }
  static UNIVG_PAIR real most(real x, real y) { return x > y ? x : y; }
  static UNIVG_PAIR real positive(real x) { return x > 0 ? x : real(0); }
  static UNIVG_PAIR real side(real low, real high) { return univg_r1 ? high - low : positive(high - low); }

  UNIVG_PAIR Pair(const real* first, const real* second) : a(first), b(second) {
    const real limit = kLargestCoordinate<real>;
    known = (std::abs(a[0]) <= limit) & (std::abs(a[1]) <= limit) & (std::abs(a[2]) <= limit) &
            (std::abs(a[3]) <= limit) & (std::abs(b[0]) <= limit) & (std::abs(b[1]) <= limit) &
            (std::abs(b[2]) <= limit) & (std::abs(b[3]) <= limit);
    width = least(a[2], b[2]) - most(a[0], b[0]), height = least(a[3], b[3]) - most(a[1], b[1]);
    const real margin = univg_r1 ? 1 : 0;  // an overlap must be wider than this
    const real product = width * height;
    counts = known & (width > margin) & (height > margin) & (product > 0);
    const real inter = counts ? product : real(0);
    side_x = side(a[0], a[2]), side_y = side(a[1], a[3]);
    all = side_x * side_y + side(b[0], b[2]) * side(b[1], b[3]) - inter;
    iou = counts ? inter / all : real(0);
    if constexpr (giou) {
      hull_x = positive(most(a[2], b[2]) - least(a[0], b[0]));
      hull_y = positive(most(a[3], b[3]) - least(a[1], b[1]));
    }
  }

  UNIVG_PAIR real value() const {
    if constexpr (!giou) return iou;
    const real hull = hull_x * hull_y;
    const real excess = (hull - all) / hull;
    const bool some = known & (hull > 0);
    return iou - (some ? excess : real(0));
  }

  // 1 where the first box's edge is the one that is taken, a half where both are.
  static UNIVG_PAIR real share(real loser, real winner) {
    return loser < winner ? real(1) : (loser == winner ? real(0.5) : real(0));
  }

  // d value / d a[0..3], times `upstream`.
  UNIVG_PAIR void gradient(real upstream, real* out) const {
    real by_inter = counts ? (1 + iou) / all : real(0), by_area = counts ? -iou / all : real(0), by_hull = 0;
    if constexpr (giou) {
      const real hull = hull_x * hull_y;
      const bool some = known & (hull > 0);
      const real inverse = some ? 1 / hull : real(0);
      by_inter = counts ? by_inter - inverse : by_inter;
      by_area += inverse;
      by_hull = some ? -(all * inverse) * inverse : real(0);
    }
    upstream = known ? upstream : real(0);
    const real inter_x = by_inter * height, inter_y = by_inter * width;
    // An empty side may grow; an inverted one does not know that it should.
    const real area_x = univg_r1 || a[2] >= a[0] ? by_area * side_y : real(0);
    const real area_y = univg_r1 || a[3] >= a[1] ? by_area * side_x : real(0);
    real x1 = inter_x * share(b[0], a[0]) + area_x, x2 = inter_x * share(a[2], b[2]) + area_x;
    real y1 = inter_y * share(b[1], a[1]) + area_y, y2 = inter_y * share(a[3], b[3]) + area_y;
    if constexpr (giou) {
      const real to_x = by_hull * hull_y, to_y = by_hull * hull_x;
      x1 += to_x * share(a[0], b[0]), x2 += to_x * share(b[2], a[2]);
      y1 += to_y * share(a[1], b[1]), y2 += to_y * share(b[3], a[3]);
    }
    out[0] = known ? -x1 * upstream : real(0), out[1] = known ? -y1 * upstream : real(0);
    out[2] = known ? x2 * upstream : real(0), out[3] = known ? y2 * upstream : real(0);
  }
};

}  // namespace univg
