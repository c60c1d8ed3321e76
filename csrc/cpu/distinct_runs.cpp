// How many different runs of n words a text has. A word becomes a hash of 64 bits, a run the polynomial of its words',
// which rolls on from word to word; the table that counts them is kept for the next text.
#include <algorithm>
#include <bit>
#include <cstring>
#include <vector>

#include "../common.h"
#include "unicode.h"

namespace univg {
namespace {

constexpr uint64_t kBase = 0x9E3779B97F4A7C15ull, kMix = 0xD6E8FEB86659FD93ull;

inline uint64_t mixed(uint64_t x) {
  x = (x ^ (x >> 32)) * kMix;
  return (x ^ (x >> 29)) * kBase;
}

constexpr uint64_t kOnes = 0x0101010101010101ull, kHigh = 0x80 * kOnes;

// The high bit of each byte of `eight` that is 0.
inline uint64_t zeros(uint64_t eight) { return ~(((eight & ~kHigh) + ~kHigh) | eight) & kHigh; }

// The bytes of the next 64 that may begin white space: up to " ", or beyond ASCII C2 and E0 to E3 (see `space`).
inline uint64_t breaks(const char* bytes) {
  uint64_t mask = 0, any = 0, eight;
  const auto add = [&](int i, uint64_t found) {
    mask |= ((found >> 7) * 0x0102040810204080ull >> 56) << 8 * i;  // the eight low bits side by side
  };
  for (int i = 0; i < 8; ++i) {
    std::memcpy(&eight, bytes + 8 * i, 8);
    add(i, ~(((eight & ~kHigh) + (0x80 - 0x21) * kOnes) | eight) & kHigh);
    any |= eight;
  }
  for (int i = 0; i < 8 && (any & kHigh) != 0; ++i) {
    std::memcpy(&eight, bytes + 8 * i, 8);
    add(i, zeros(eight ^ 0xC2 * kOnes) | zeros((eight & 0xFC * kOnes) ^ 0xE0 * kOnes));
  }
  return mask;
}

inline uint64_t hash(Text t, size_t begin, size_t end) {
  uint64_t h = (end - begin) * kMix, eight;
  for (; begin + 8 < end; begin += 8) std::memcpy(&eight, t.data() + begin, 8), h = mixed(h ^ eight);
  eight = 0;
  if (begin + 8 <= t.size()) {
    std::memcpy(&eight, t.data() + begin, 8);
    eight &= ~0ull >> 8 * (8 - (end - begin));
  } else {
    std::memcpy(&eight, t.data() + begin, end - begin);
  }
  return mixed(h ^ eight);
}

// The words' hashes into `words`, which grows and never shrinks; how many there are.
size_t split(Text t, std::vector<uint64_t>* words) {
  if (words->size() < t.size() / 2 + 1) words->resize(t.size() / 2 + 1);
  uint64_t* next = words->data();
  size_t begin = 0;
  for (size_t block = 0; block < t.size(); block += 64) {
    char rest[64] = {};
    const bool whole = block + 64 <= t.size();
    if (!whole) std::memcpy(rest, t.data() + block, t.size() - block);
    uint64_t found = breaks(whole ? t.data() + block : rest);
    if (!whole) found &= (1ull << (t.size() - block)) - 1;
    for (; found != 0; found &= found - 1) {
      const size_t at = block + static_cast<size_t>(std::countr_zero(found));
      const size_t gap = at < begin ? 0 : space(t, at);  // a space of several bytes may have been passed already
      if (gap == 0) continue;
      if (at > begin) *next++ = hash(t, begin, at);
      begin = at + gap;
    }
  }
  if (begin < t.size()) *next++ = hash(t, begin, t.size());
  return static_cast<size_t>(next - words->data());
}

// A set of hashes with room for eight times as many, so that few of them meet; 0 marks a free place.
int64_t different(const uint64_t* runs, size_t count, std::vector<uint64_t>* table) {
  const size_t size = std::bit_ceil(8 * count + 2), shift = 64 - static_cast<size_t>(std::countr_zero(size));
  if (table->size() < size) table->resize(size);
  uint64_t* places = table->data();
  std::fill_n(places, size, 0);
  int64_t found = 0;
  for (size_t i = 0; i < count; ++i) {
    size_t at = (runs[i] ^ runs[i] >> 32) * kBase >> shift;
    while (places[at] != 0 && places[at] != runs[i]) at = (at + 1) & (size - 1);
    found += places[at] == 0;
    places[at] = runs[i];
  }
  return found;
}

// [B, 2]: different runs and all runs of n words of text i, the bytes offsets[i] : offsets[i+1]; where unanswered[i], of
// what stands before its last <answer>, and of nothing where it has none.
Tensor distinct_runs(const Tensor& text, const Tensor& offsets, const Tensor& unanswered, int64_t n) {
  UNIVG_CHECK(text.is_cpu() && text.scalar_type() == ScalarType::Byte && text.is_contiguous(),
              "text: expected contiguous bytes on the CPU");
  UNIVG_CHECK(n >= 1, "n: expected 1 or more words, got ", n);
  const int64_t texts = unanswered.numel();
  const auto* cut = data<bool>(unanswered, texts, "unanswered");
  const auto* cu = data<int64_t>(offsets, texts + 1, "offsets");
  UNIVG_CHECK(cu[0] >= 0 && cu[texts] <= text.numel(), "offsets: expected them within 0 and ", text.numel());
  for (int64_t i = 0; i < texts; ++i) UNIVG_CHECK(cu[i] <= cu[i + 1], "offsets: expected them never to fall");
  const auto* bytes = static_cast<const char*>(text.data_ptr());
  Tensor counts = make<int64_t>(offsets, {texts, 2});
  auto* count = static_cast<int64_t*>(counts.data_ptr());
  const auto length = static_cast<uint64_t>(n);
  uint64_t last = 1;  // kBase^(n-1), the factor of a run's first word
  for (uint64_t power = length - 1, base = kBase; power > 0; power >>= 1, base *= base)
    if (power & 1) last *= base;
  std::vector<uint64_t> words, table;
  for (int64_t i = 0; i < texts; ++i) {
    Text t(bytes + cu[i], static_cast<size_t>(cu[i + 1] - cu[i]));
    if (cut[i]) {
      const size_t answer = t.rfind("<answer>");
      t = t.substr(0, answer == kNowhere ? 0 : answer);
    }
    const size_t all = split(t, &words), runs = all >= length ? all - length + 1 : 0;
    uint64_t run = 0;
    for (size_t j = 0; runs > 0 && j + 1 < length; ++j) run = run * kBase + words[j];
    for (size_t j = 0; j < runs; ++j) {  // the run takes the place of its first word, which leaves it next
      run = run * kBase + words[j + length - 1];
      const uint64_t first = words[j];
      words[j] = run == 0 ? 1 : run;
      run -= first * last;
    }
    count[2 * i] = different(words.data(), runs, &table), count[2 * i + 1] = static_cast<int64_t>(runs);
  }
  return counts;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(univg_kernels, CPU, m) { m.impl("distinct_runs", TORCH_BOX(&distinct_runs)); }

}  // namespace univg
