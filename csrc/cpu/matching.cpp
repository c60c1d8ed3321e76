// Matching of largest total IoU between two sets of boxes, by shortest augmenting paths (Kuhn, Munkres; Jonker and
// Volgenant): O(n²m) for n <= m. Segments are matched on their own.
#include <algorithm>
#include <limits>
#include <vector>

#include "../box_overlap.h"
#include "../common.h"

namespace univg {
namespace {

// The cheapest assignment of n rows to m >= n columns; column j goes to row row_of[j], counted from 1, 0: to none.
// Rows enter one by one, each along the path that costs least in prices reduced by the potentials.
class Assignment {
 public:
  const std::vector<int64_t>& solve(const std::vector<double>& cost, int64_t n, int64_t m) {
    row_price_.assign(n + 1, 0), column_price_.assign(m + 1, 0), row_of_.assign(m + 1, 0), came_from_.assign(m + 1, 0);
    for (int64_t row = 1; row <= n; ++row) add(row, cost, m);
    return row_of_;
  }

 private:
  void add(int64_t row, const std::vector<double>& cost, int64_t m) {
    distance_.assign(m + 1, std::numeric_limits<double>::infinity());
    done_.assign(m + 1, false);
    int64_t column = 0;  // the made-up one that the new row starts from
    row_of_[0] = row;
    do {
      done_[column] = true;
      const int64_t at = row_of_[column];
      int64_t next = 0;
      double step = std::numeric_limits<double>::infinity();
      for (int64_t j = 1; j <= m; ++j) {
        if (done_[j]) continue;
        const double reduced = cost[(at - 1) * m + j - 1] - row_price_[at] - column_price_[j];
        if (reduced < distance_[j]) distance_[j] = reduced, came_from_[j] = column;
        if (distance_[j] < step) step = distance_[j], next = j;
      }
      for (int64_t j = 0; j <= m; ++j)
        if (done_[j]) row_price_[row_of_[j]] += step, column_price_[j] -= step;
        else distance_[j] -= step;
      column = next;
    } while (row_of_[column] != 0);
    for (; column != 0; column = came_from_[column]) row_of_[column] = row_of_[came_from_[column]];
  }

  std::vector<double> row_price_, column_price_, distance_;
  std::vector<int64_t> row_of_, came_from_;
  std::vector<char> done_;
};

// Boxes of the images i and j may be matched: a negative number stands for any image.
bool meet(const int64_t* images1, const int64_t* images2, int64_t i, int64_t j) {
  return !images1 || !images2 || images1[i] < 0 || images2[j] < 0 || images1[i] == images2[j];
}

std::tuple<Tensor, Tensor, Tensor, Tensor> matched_iou(const Tensor& boxes1, const Tensor& boxes2,
                                                       const Tensor& offsets1, const Tensor& offsets2,
                                                       const std::optional<Tensor>& images1,
                                                       const std::optional<Tensor>& images2, bool univg_r1) {
  const int64_t n = boxes1.size(0), m = boxes2.size(0), segments = offsets1.numel() - 1;
  UNIVG_CHECK(segments >= 0, "offsets1: expected at least one offset");
  const double *a = data<double>(boxes1, n * 4, "boxes1"), *b = data<double>(boxes2, m * 4, "boxes2");
  const int64_t *c1 = data<int64_t>(offsets1, segments + 1, "offsets1"),
                *c2 = data<int64_t>(offsets2, segments + 1, "offsets2"), *i1 = data<int64_t>(images1, n, "images1"),
                *i2 = data<int64_t>(images2, m, "images2");
  UNIVG_CHECK(c1[0] == 0 && c2[0] == 0 && c1[segments] == n && c2[segments] == m, "offsets: expected 0 to ", n,
              " and ", m);
  for (int64_t s = 0; s < segments; ++s)
    UNIVG_CHECK(c1[s] <= c1[s + 1] && c2[s] <= c2[s + 1] && c1[s + 1] <= n && c2[s + 1] <= m,
                "offsets: expected them never to fall");
  Tensor total = make<double>(boxes1, {segments}), count = make<int64_t>(boxes1, {segments}),
         partner = make<int64_t>(boxes1, {n}), iou = make<double>(boxes1, {n});
  auto *sum = static_cast<double*>(total.data_ptr()), *each = static_cast<double*>(iou.data_ptr());
  auto *matches = static_cast<int64_t*>(count.data_ptr()), *to = static_cast<int64_t*>(partner.data_ptr());
  std::fill(to, to + n, -1), std::fill(each, each + n, 0.0);

  Assignment assignment;
  std::vector<double> cost;
  for (int64_t s = 0; s < segments; ++s) {
    const int64_t rows = c1[s + 1] - c1[s], columns = c2[s + 1] - c2[s];
    const bool swapped = rows > columns;  // the smaller side gives the rows
    const int64_t few = std::min(rows, columns), many = std::max(rows, columns);
    cost.assign(few * many, 0.0);
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < columns; ++j) {
        const int64_t p = c1[s] + i, q = c2[s] + j;
        if (!meet(i1, i2, p, q)) continue;
        const double x = univg_r1 ? Pair<false, true>(a + 4 * p, b + 4 * q).value()
                                  : Pair<false, false>(a + 4 * p, b + 4 * q).value();
        cost[swapped ? j * many + i : i * many + j] = -x;
      }
    const auto& row_of = assignment.solve(cost, few, many);
    sum[s] = 0, matches[s] = 0;
    for (int64_t column = 0; column < many; ++column) {
      const int64_t row = row_of[column + 1] - 1;
      if (row < 0 || cost[row * many + column] == 0) continue;  // boxes that do not overlap are no match
      const int64_t p = c1[s] + (swapped ? column : row), q = c2[s] + (swapped ? row : column);
      to[p] = q, each[p] = -cost[row * many + column], ++matches[s];
    }
    for (int64_t p = c1[s]; p < c1[s + 1]; ++p) sum[s] += each[p];
  }
  return {total, count, partner, iou};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(univg_kernels, CPU, m) { m.impl("matched_iou", TORCH_BOX(&matched_iou)); }

}  // namespace univg
