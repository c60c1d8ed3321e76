// How many different runs of n words a text has. A word becomes a hash of 64 bits, a run the polynomial of its words',
// which rolls on from word to word; the table that counts them is kept for the next text.
#include <bit>
#include <cstring>
#include <vector>

#include "../common.h"
#include "box_text.h"

namespace univg {
namespace {

constexpr uint64_t kBase = 0x9E3779B97F4A7C15ull, kMix = 0xD6E8FEB86659FD93ull;

inline uint64_t mixed(uint64_t x) {
  x = (x ^ (x >> 32)) * kMix;
  return (x ^ (x >> 29)) * kBase;
}

// Bytes of white space at `at`, as Python's str.split has it: 0 for none.
inline size_t space(Text t, size_t at) {
  const auto byte = [&](size_t i) { return at + i < t.size() ? static_cast<unsigned char>(t[at + i]) : 0; };
  if (is_space(t[at])) return 1;
  switch (byte(0)) {
    case 0xC2: return byte(1) == 0x85 || byte(1) == 0xA0 ? 2 : 0;
    case 0xE1: return byte(1) == 0x9A && byte(2) == 0x80 ? 3 : 0;
    case 0xE2:
      if (byte(1) == 0x81) return byte(2) == 0x9F ? 3 : 0;
      if (byte(1) != 0x80) return 0;
      return (byte(2) >= 0x80 && byte(2) <= 0x8A) || byte(2) == 0xA8 || byte(2) == 0xA9 || byte(2) == 0xAF ? 3 : 0;
    case 0xE3: return byte(1) == 0x80 && byte(2) == 0x80 ? 3 : 0;
    default: return 0;
  }
}

// The high bit of each byte that may begin white space: up to " " or beyond ASCII. The lowest is right, and the others
// are not looked at.
inline uint64_t breaks(uint64_t eight) {
  constexpr uint64_t kOnes = 0x0101010101010101ull, kHigh = 0x80 * kOnes;
  return ((eight - 0x21 * kOnes) | eight) & kHigh;
}

// The hash of the word that begins at `at`, which moves behind it; eight bytes at a time.
inline uint64_t word(Text t, size_t* at) {
  uint64_t h = 0;
  for (;;) {
    uint64_t eight = 0;
    if (*at + 8 <= t.size()) std::memcpy(&eight, t.data() + *at, 8);
    else std::memcpy(&eight, t.data() + *at, t.size() - *at);  // and zeros, which are breaks
    const uint64_t found = breaks(eight);
    if (found == 0) {
      h = mixed(h ^ eight), *at += 8;
      continue;
    }
    const auto sure = static_cast<uint64_t>(std::countr_zero(found)) / 8;
    h = mixed(h ^ ((eight & ((1ull << 8 * sure) - 1)) | sure << 56));  // eight sure bytes have none so low up there
    *at += sure;
    if (*at >= t.size() || space(t, *at)) return h;
    h = mixed(h ^ (static_cast<unsigned char>(t[*at]) | 9ull << 56)), ++*at;
  }
}

void split(Text t, std::vector<uint64_t>* words) {
  words->clear();
  for (size_t at = 0; at < t.size();) {
    const size_t gap = space(t, at);
    if (gap > 0) at += gap;
    else words->push_back(word(t, &at));
  }
}

// A set of hashes with room for eight times as many, so that few of them meet; 0 marks a free place.
int64_t different(const std::vector<uint64_t>& runs, std::vector<uint64_t>* table) {
  const size_t size = std::bit_ceil(8 * runs.size() + 1), shift = 64 - static_cast<size_t>(std::countr_zero(size));
  table->assign(size, 0);
  int64_t found = 0;
  for (uint64_t run : runs) {
    size_t at = mixed(run) >> shift;
    while ((*table)[at] != 0 && (*table)[at] != run) at = (at + 1) & (size - 1);
    found += (*table)[at] == 0;
    (*table)[at] = run;
  }
  return found;
}

// [B, 2]: different runs and all runs of n words of text i, the bytes offsets[i] : offsets[i+1].
Tensor distinct_runs(const Tensor& text, const Tensor& offsets, int64_t n) {
  UNIVG_CHECK(text.is_cpu() && text.scalar_type() == ScalarType::Byte && text.is_contiguous(),
              "text: expected contiguous bytes on the CPU");
  UNIVG_CHECK(n >= 1, "n: expected 1 or more words, got ", n);
  const int64_t texts = offsets.numel() - 1;
  UNIVG_CHECK(texts >= 0, "offsets: expected at least one");
  const auto* cu = data<int64_t>(offsets, texts + 1, "offsets");
  UNIVG_CHECK(cu[0] >= 0 && cu[texts] <= text.numel(), "offsets: expected them within 0 and ", text.numel());
  for (int64_t i = 0; i < texts; ++i) UNIVG_CHECK(cu[i] <= cu[i + 1], "offsets: expected them never to fall");
  const auto* bytes = static_cast<const char*>(text.data_ptr());
  Tensor counts = make<int64_t>(offsets, {texts, 2});
  auto* count = static_cast<int64_t*>(counts.data_ptr());
  const auto length = static_cast<uint64_t>(n);
  uint64_t last = 1;  // kBase^n, the factor of the word that leaves a run
  for (uint64_t power = length, base = kBase; power > 0; power >>= 1, base *= base)
    if (power & 1) last *= base;
  std::vector<uint64_t> words, runs, table;
  for (int64_t i = 0; i < texts; ++i) {
    split(Text(bytes + cu[i], static_cast<size_t>(cu[i + 1] - cu[i])), &words);
    runs.clear();
    uint64_t run = 0;
    for (size_t j = 0; j < words.size(); ++j) {
      run = run * kBase + words[j] - (j >= length ? words[j - length] * last : 0);
      if (j + 1 >= length) runs.push_back(run == 0 ? 1 : run);
    }
    count[2 * i] = different(runs, &table), count[2 * i + 1] = static_cast<int64_t>(runs.size());
  }
  return counts;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(univg_kernels, CPU, m) { m.impl("distinct_runs", TORCH_BOX(&distinct_runs)); }

}  // namespace univg
