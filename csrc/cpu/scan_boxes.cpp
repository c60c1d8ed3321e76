// What completions answer, in one pass over each text that never goes back: every reader gives up at the first byte that
// does not fit, and the next one starts behind the place where it began. The modes are those of scan_boxes/reference.py.
#include <algorithm>

#include "../common.h"
#include "box_search.h"
#include "unicode.h"

namespace univg {
namespace {

enum Mode { kReward, kStrict, kLenient, kEval, kMigician };

using Result = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

// facts [B, 4]: UniVG-R1's form, the strict form, tags, boxes found; offsets [B+1]; boxes [M, 4]; images [M]; labels
// [M, 2]: where in `text` they begin and end, -1 for none. options [B]: style + 4·cot.
Result scan_boxes(const Tensor& text, const Tensor& offsets, const Tensor& options, int64_t mode, int64_t most) {
  const int64_t n = options.numel(), size = text.numel();
  UNIVG_CHECK(text.is_cpu() && text.scalar_type() == ScalarType::Byte && text.is_contiguous(),
              "text: expected contiguous bytes on the CPU");
  UNIVG_CHECK(mode >= kReward && mode <= kMigician && most >= 0, "scan_boxes: unknown mode ", mode);
  const int64_t *cu = data<int64_t>(offsets, n + 1, "offsets"), *option = data<int64_t>(options, n, "options");
  UNIVG_CHECK(cu[0] >= 0 && cu[n] <= size, "offsets: expected them within 0 and ", size);
  for (int64_t i = 0; i < n; ++i) {
    UNIVG_CHECK(cu[i] <= cu[i + 1], "offsets: expected them never to fall");
    UNIVG_CHECK((option[i] & ~7) == 0 && (option[i] & 3) <= kTokens, "options: unknown ", option[i]);
  }
  const char* bytes = static_cast<const char*>(text.data_ptr());
  Tensor facts = make<int64_t>(options, {n, 4}), ends = make<int64_t>(options, {n + 1});
  auto *fact = static_cast<int64_t*>(facts.data_ptr()), *end = static_cast<int64_t*>(ends.data_ptr());
  Boxes kept, found, answer;
  Plain plain;
  end[0] = 0;
  for (int64_t i = 0; i < n; ++i) {
    const Text t = plain.read({bytes + cu[i], static_cast<size_t>(cu[i + 1] - cu[i])});
    const auto style = static_cast<Style>(option[i] & 3);
    const bool cot = option[i] & 4;
    const Tags tags(t);
    found.clear(), answer.clear();
    read_strict(t, tags, style, cot, &answer);
    if (mode == kStrict || (mode == kReward && style != kUnivg)) found.swap(answer);
    else if (mode == kReward) read_reward(t, cot, &found);
    else if (mode == kLenient) read_lenient(t, &found);
    else read_legacy(t, mode == kMigician, &found);
    const bool right = !(mode == kStrict || (mode == kReward && style != kUnivg) ? found : answer).empty();
    fact[4 * i] = has_format(t, cot), fact[4 * i + 1] = right && strict_form(t, tags, cot);
    fact[4 * i + 2] = tags.in_order, fact[4 * i + 3] = static_cast<int64_t>(found.size());
    found.resize(std::min(static_cast<size_t>(most), found.size()));
    for (Box& box : found) box.label = plain.original(box.label), kept.push_back(box);
    end[i + 1] = static_cast<int64_t>(kept.size());
  }
  const auto m = static_cast<int64_t>(kept.size());
  Tensor boxes = make<double>(options, {m, 4}), images = make<int64_t>(options, {m}),
         labels = make<int64_t>(options, {m, 2});
  auto* corner = static_cast<double*>(boxes.data_ptr());
  auto *image = static_cast<int64_t*>(images.data_ptr()), *label = static_cast<int64_t*>(labels.data_ptr());
  for (int64_t j = 0; j < m; ++j) {
    std::copy_n(kept[j].corners, 4, corner + 4 * j);
    image[j] = kept[j].image;
    const Text name = kept[j].label;
    label[2 * j] = name.data() ? name.data() - bytes : -1;
    label[2 * j + 1] = name.data() ? name.data() - bytes + static_cast<int64_t>(name.size()) : -1;
  }
  return {facts, ends, boxes, images, labels};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(univg_kernels, CPU, m) { m.impl("scan_boxes", TORCH_BOX(&scan_boxes)); }

}  // namespace univg
