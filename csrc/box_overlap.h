// Overlap of two boxes (x1, y1, x2, y2) and its gradient by the first one: the formulas of box_iou/reference.py, for one
// pair, without branches. IoU and GIoU are symmetric: the gradient by the second box is this with the roles swapped.
// All of it in fp64: of fp32 boxes, however large or small, no area overflows or vanishes there.
#pragma once
#include <cmath>

#include "row_types.h"  // UNIVG_HD

// Inlined wherever it stands: the loops over pairs must become vector code.
#if defined(__CUDACC__)
#define UNIVG_PAIR UNIVG_HD __forceinline__
#else
#define UNIVG_PAIR inline __attribute__((always_inline))
#endif

namespace univg {

// Coordinates beyond this could overflow as areas: such boxes, and boxes with NaN, overlap with nothing.
constexpr double kLargestCoordinate = 0x1p510;

template <bool giou, bool univg_r1>
struct Pair {
  double a[4], b[4];
  bool known, counts;
  double width, height;   // of the overlap
  double side_x, side_y;  // of the first box, as its area takes them
  double hull_x, hull_y;  // of the smallest box around both
  double all, iou;        // area of the union

  static UNIVG_PAIR double least(double x, double y) { return x < y ? x : y; }
  static UNIVG_PAIR double most(double x, double y) { return x > y ? x : y; }
  static UNIVG_PAIR double positive(double x) { return x > 0 ? x : 0; }
  static UNIVG_PAIR double side(double low, double high) { return univg_r1 ? high - low : positive(high - low); }

  template <class real>
  UNIVG_PAIR Pair(const real* first, const real* second)
      : a{first[0], first[1], first[2], first[3]}, b{second[0], second[1], second[2], second[3]} {
    constexpr double limit = kLargestCoordinate;
    known = (std::abs(a[0]) <= limit) & (std::abs(a[1]) <= limit) & (std::abs(a[2]) <= limit) &
            (std::abs(a[3]) <= limit) & (std::abs(b[0]) <= limit) & (std::abs(b[1]) <= limit) &
            (std::abs(b[2]) <= limit) & (std::abs(b[3]) <= limit);
    width = least(a[2], b[2]) - most(a[0], b[0]), height = least(a[3], b[3]) - most(a[1], b[1]);
    const double margin = univg_r1 ? 1 : 0;  // an overlap must be wider than this
    const double product = width * height;
    counts = known & (width > margin) & (height > margin) & (product > 0);
    const double inter = counts ? product : 0;
    side_x = side(a[0], a[2]), side_y = side(a[1], a[3]);
    all = side_x * side_y + side(b[0], b[2]) * side(b[1], b[3]) - inter;
    iou = counts ? inter / all : 0;
    if constexpr (giou) {
      hull_x = positive(most(a[2], b[2]) - least(a[0], b[0]));
      hull_y = positive(most(a[3], b[3]) - least(a[1], b[1]));
    }
  }

  UNIVG_PAIR double value() const {
    if constexpr (!giou) return iou;
    const double hull = hull_x * hull_y;
    const double excess = (hull - all) / hull;
    const bool some = known & (hull > 0);
    return iou - (some ? excess : 0);
  }

  // 1 where the first box's edge is the one that is taken, a half where both are.
  static UNIVG_PAIR double share(double loser, double winner) { return loser < winner ? 1 : (loser == winner ? 0.5 : 0); }

  // d value / d a[0..3], times `upstream`.
  template <class real>
  UNIVG_PAIR void gradient(double upstream, real* out) const {
    double by_inter = counts ? (1 + iou) / all : 0, by_area = counts ? -iou / all : 0, by_hull = 0;
    if constexpr (giou) {
      const double hull = hull_x * hull_y;
      const bool some = known & (hull > 0);
      const double inverse = some ? 1 / hull : 0;
      by_inter = counts ? by_inter - inverse : by_inter;
      by_area += inverse;
      by_hull = some ? -(all * inverse) * inverse : 0;
    }
    upstream = known ? upstream : 0;
    const double inter_x = by_inter * height, inter_y = by_inter * width;
    // An empty side may grow; an inverted one does not know that it should.
    const double area_x = univg_r1 || a[2] >= a[0] ? by_area * side_y : 0;
    const double area_y = univg_r1 || a[3] >= a[1] ? by_area * side_x : 0;
    double x1 = inter_x * share(b[0], a[0]) + area_x, x2 = inter_x * share(a[2], b[2]) + area_x;
    double y1 = inter_y * share(b[1], a[1]) + area_y, y2 = inter_y * share(a[3], b[3]) + area_y;
    if constexpr (giou) {
      const double to_x = by_hull * hull_y, to_y = by_hull * hull_x;
      x1 += to_x * share(a[0], b[0]), x2 += to_x * share(b[2], a[2]);
      y1 += to_y * share(a[1], b[1]), y2 += to_y * share(b[3], a[3]);
    }
    out[0] = known ? static_cast<real>(-x1 * upstream) : 0, out[1] = known ? static_cast<real>(-y1 * upstream) : 0;
    out[2] = known ? static_cast<real>(x2 * upstream) : 0, out[3] = known ? static_cast<real>(y2 * upstream) : 0;
  }
};

}  // namespace univg
