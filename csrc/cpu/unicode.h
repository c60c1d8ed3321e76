// Digits and white space beyond ASCII, as Python's `re` and `str.split` know them, in UTF-8.
#pragma once
#include <algorithm>
#include <bit>
#include <string>
#include <utility>
#include <vector>

#include "box_text.h"

namespace univg {

// The zero of each script, before its 1 to 9 (Unicode 16).
inline constexpr char32_t kZeros[] = {
    0x660,   0x6f0,   0x7c0,   0x966,   0x9e6,   0xa66,   0xae6,   0xb66,   0xbe6,   0xc66,   0xce6,   0xd66,   0xde6,
    0xe50,   0xed0,   0xf20,   0x1040,  0x1090,  0x17e0,  0x1810,  0x1946,  0x19d0,  0x1a80,  0x1a90,  0x1b50,  0x1bb0,
    0x1c40,  0x1c50,  0xa620,  0xa8d0,  0xa900,  0xa9d0,  0xa9f0,  0xaa50,  0xabf0,  0xff10,  0x104a0, 0x10d30, 0x10d40,
    0x11066, 0x110f0, 0x11136, 0x111d0, 0x112f0, 0x11450, 0x114d0, 0x11650, 0x116c0, 0x116d0, 0x116da, 0x11730, 0x118e0,
    0x11950, 0x11bf0, 0x11c50, 0x11d50, 0x11da0, 0x11f50, 0x16a60, 0x16ac0, 0x16b50, 0x1ccf0, 0x1d7ce, 0x1d7d8, 0x1d7e2,
    0x1d7ec, 0x1d7f6, 0x1e140, 0x1e2f0, 0x1e4f0, 0x1e5f1, 0x1e950, 0x1fbf0};

// The character of several bytes that begins at `at`, and how many; 1 of what begins none.
inline char32_t character(Text t, size_t at, size_t* bytes) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(t[at + i]); };
  const size_t count = byte(0) < 0xC2 ? 1 : byte(0) < 0xE0 ? 2 : byte(0) < 0xF0 ? 3 : 4;
  *bytes = at + count <= t.size() ? count : 1;
  char32_t code = byte(0) & (0x7F >> *bytes);
  for (size_t i = 1; i < *bytes; ++i) code = code << 6 | (byte(i) & 0x3F);
  return *bytes == 1 ? 0 : code;
}

constexpr bool is_wide_space(char32_t c) {
  return c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 ||
         c == 0x202F || c == 0x205F || c == 0x3000;
}

// What ASCII has for it, ' ' or a digit; 0 for neither.
inline char plain(char32_t c) {
  if (is_wide_space(c)) return ' ';
  if (c < 0x660 || (c > 0x1C59 && c < 0xA620) || (c > 0xABF9 && c < 0xFF10)) return 0;  // most texts hold no others
  const char32_t value = c - *(std::upper_bound(std::begin(kZeros), std::end(kZeros), c) - 1);
  return value < 10 ? static_cast<char>('0' + value) : 0;
}

// Bytes of white space at `at`, 0 for none.
inline size_t space(Text t, size_t at) {
  const auto first = static_cast<unsigned char>(t[at]);
  if (first < 0x80) return is_space(t[at]);
  if (first != 0xC2 && (first < 0xE1 || first > 0xE3)) return 0;
  size_t bytes;
  return is_wide_space(character(t, at, &bytes)) ? bytes : 0;
}

struct Leads {
  bool odd[256] = {};  // the bytes that begin such a digit or space
  constexpr Leads() {
    for (int c : {0xC2, 0xD9, 0xDB, 0xDF, 0xE0, 0xE1, 0xE2, 0xE3, 0xEA, 0xEF, 0xF0}) odd[c] = true;
  }
};
inline constexpr Leads kLeads;

// Where the next byte stands that may begin one, or the end.
inline size_t next_odd(Text t, size_t at) {
  for (;;) {
    for (uint64_t eight; at + 8 <= t.size(); at += 8) {
      std::memcpy(&eight, t.data() + at, 8);
      if (eight &= 0x8080808080808080ull) {
        at += static_cast<size_t>(std::countr_zero(eight)) / 8;
        break;
      }
    }
    for (; at < t.size() && static_cast<signed char>(t[at]) < 0; ++at)
      if (kLeads.odd[static_cast<unsigned char>(t[at])]) return at;
    if (at + 8 > t.size()) break;
  }
  while (at < t.size() && !kLeads.odd[static_cast<unsigned char>(t[at])]) ++at;
  return at;
}

// A text whose digits and white space are ASCII's: itself, or a copy, of which any part leads back to the original.
class Plain {
 public:
  Text read(Text t) {
    original_ = t, copy_.clear(), ahead_.clear();
    size_t copied = 0, bytes;
    for (size_t at = next_odd(t, 0); at < t.size(); at = next_odd(t, at + bytes)) {
      const char c = plain(character(t, at, &bytes));
      if (c == 0 || in_a_key(t, at, bytes)) continue;
      copy_.append(t.substr(copied, at - copied)).push_back(c);
      copied = at + bytes;
      ahead_.emplace_back(copy_.size(), copied - copy_.size());
    }
    if (ahead_.empty()) return t;
    copy_.append(t.substr(copied));
    return copy_;
  }

  Text original(Text part) const {
    if (ahead_.empty() || !part.data()) return part;
    const auto from = static_cast<size_t>(part.data() - copy_.data());
    const size_t begin = place(from), end = place(from + part.size());
    return original_.substr(begin, end - begin);
  }

 private:
  // The one word of the grammar with a digit, "bbox_2d", is written with that of ASCII.
  static bool in_a_key(Text t, size_t at, size_t bytes) {
    return t.substr(0, at).ends_with("bbox_") && t.substr(at + bytes, 1) == "d";
  }
  size_t place(size_t at) const {
    const auto next = std::upper_bound(ahead_.begin(), ahead_.end(), std::pair(at, ~size_t{0}));
    return next == ahead_.begin() ? at : at + (next - 1)->second;
  }

  Text original_;
  std::string copy_;
  std::vector<std::pair<size_t, size_t>> ahead_;  // a place of the copy, and how far the original is ahead from there on
};

}  // namespace univg
